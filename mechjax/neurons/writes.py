"""The vectors that the neurons of a layer write to the residual stream.

The output of an MLP is h = sum_i a_i w_i + bias, with w_i the row of W_out. In most models h is added to the stream as
it is. Gemma 2 and 3 normalise it first and add gain * h / rms(h): a neuron then writes gain * w_i / rms(h), and changes
rms(h) for all others.

    writes = NeuronWrites.of(W_out)                                        Llama
    writes = NeuronWrites.of(W_out, bias)                                  GPT-2
    writes = NeuronWrites.of(W_out, gain=post_norm_scale, eps=1e-6)        Gemma 3

Sharp edge: a LayerNorm after the MLP is not supported, because no known model has one.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mechjax import precision
from mechjax.errors import NeuronError
from mechjax.neurons.checks import check_close, check_floats, check_ids


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['W_out', 'bias', 'gain'],
  meta_fields=['eps'],
)
@dataclasses.dataclass(frozen=True, eq=False)
class NeuronWrites:
  """Output matrix of an MLP, and the norm after it; make one with `NeuronWrites.of`.

  Attributes:
    W_out: row i is the vector of neuron i, in float32 or wider, [F, D].
    bias: [D]; None without one.
    gain: scale of the norm after the MLP, [D]; None without such a norm.
    eps: added to the mean square in that norm.
  """

  W_out: Float[Array, 'F D']
  bias: Float[Array, ' D'] | None = None
  gain: Float[Array, ' D'] | None = None
  eps: float = 0.0

  @classmethod
  def of(
    cls,
    W_out: Float[Array | np.ndarray, 'F D'],
    bias: Float[Array | np.ndarray, ' D'] | None = None,
    *,
    gain: Float[Array | np.ndarray, ' D'] | None = None,
    eps: float | None = None,
  ) -> NeuronWrites:
    """Checks and converts the weights.

    Args:
      W_out: output matrix of the MLP, [F, D].
      bias: its bias, [D].
      gain: scale of an RMSNorm after the MLP as it is multiplied, [D].
      eps: added to the mean square in that norm; given if and only if `gain` is.

    Raises:
      NeuronError: widths that do not fit, NaN, a gain without eps.
    """
    check_floats('W_out', W_out, 'F D')
    for name, x in (('bias', bias), ('gain', gain)):
      if x is not None:
        check_floats(f'the {name}', x, 'D', {'D': W_out.shape[1]})
    if (gain is None) != (eps is None) or (eps is not None and not 0 <= eps < math.inf):
      raise NeuronError(
        f'eps={eps!r} with {"no" if gain is None else "a"} gain of a norm after the MLP',
        hint='gain= and eps=, a number of at least 0, together for models such as Gemma 2 and 3; otherwise neither',
      )
    rows = precision.wide(jnp.asarray(W_out))
    cast = lambda x: None if x is None else jnp.asarray(x).astype(rows.dtype)  # noqa: E731
    return cls(rows, cast(bias), cast(gain), float(eps or 0.0))

  @property
  def directions(self) -> Float[Array, 'F D']:
    """Directions in which neurons write, [F, D]: w_i, times the gain of the norm after the MLP if there is one."""
    return self.W_out if self.gain is None else self.W_out * self.gain

  def take(self, neurons: Int[Array | np.ndarray, ' n']) -> NeuronWrites:
    """Takes some of the neurons.

    Raises:
      NeuronError: a neuron that does not exist.
    """
    rows = check_ids('neurons', neurons, len(self.W_out))
    return dataclasses.replace(self, W_out=self.W_out[rows])

  def sum(self, a: Float[Array, '*batch F']) -> Float[Array, '*batch D']:
    """The output of the MLP before a norm after it: h of activations of all neurons."""
    h = precision.matmul(a.astype(self.W_out.dtype), self.W_out)
    return h if self.bias is None else h + self.bias

  def add(self, a: Float[Array, '*batch F']) -> Float[Array, '*batch D']:
    """The output of the MLP as it is added to the stream."""
    h = self.sum(a)
    if self.gain is None:
      return h
    return h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + self.eps) * self.gain

  def check(
    self,
    a: Float[Array | np.ndarray, '*batch F'],
    mlp_out: Float[Array | np.ndarray, '*batch D'],
    tolerance: float = 1e-3,
  ) -> None:
    """Compares with the output of the MLP in the model: the matrix of another layer gives plausible numbers otherwise.

    Args:
      a: activations of some tokens, `mlp_post`.
      mlp_out: output of the MLP at these tokens, as it is added to the stream.
      tolerance: largest difference, as a share of the largest number of `mlp_out`.

    Raises:
      NeuronError: they differ by more.
    """
    check_floats('a', a, ' '.join(['B'] * (np.ndim(a) - 1) + ['F']), {'F': len(self.W_out)})
    largest = float(np.abs(np.asarray(mlp_out, np.float64)).max())
    check_close(
      'output of the MLP', self.add(jnp.asarray(a)), mlp_out, tolerance * largest,
      'W_out of another layer, a bias or a norm after the MLP that was left out',
    )  # fmt: skip
