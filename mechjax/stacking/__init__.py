"""Layers as one scan: compile time constant in depth, and one executable for a sweep over layers.

A model of thirty layers in a Python loop is thirty copies of one program, and XLA compiles each. As a scan over stacked
parameters it is one program at any depth; the iteration of the scan is the layer, so the sites keep their names.

  stack            an existing model: its repeated layers are found in the staged program
  scan_layers      your own block over stacked parameters
  stack_params     the parameters of each layer as one tree with a leading axis of layers; unstack_params is the inverse

    model = mechjax.load('smollm2-135m', code='tunix')        # thirty layers in a Python loop
    flat = stacking.stack(model.apply, model.params, tokens)
    logits = jax.jit(flat)(flat.params, tokens)               # the same logits, a fraction of the compile time
    harvest.reap(flat, sites='mlp_out.{3,7}')(flat.params, tokens)

`trees` has `stack_params` and `scan_layers`, `layers` finds the layers of a program, `function` runs them under a scan.
"""

from mechjax.stacking.function import Stacked, stack
from mechjax.stacking.trees import scan_layers, stack_params, unstack_params

__all__ = ['Stacked', 'scan_layers', 'stack', 'stack_params', 'unstack_params']
