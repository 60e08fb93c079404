"""Settings of a training run, checked before a model is loaded.

Each field is a flag of the same name, and its description here is the flag's help. The dictionaries are those of
`dictionary_settings`; all of them train together on one stream of activations.

    TrainSettings(site='resid_post.15', model='smollm2-135m', dictionaries=Dictionaries(topk=(32, 64)), ...)
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from mechjax import flags
from mechjax.errors import SAEError
from mechjax.sae.checks import check_field
from mechjax.sae.training import LoopSettings, Optimisation
from mechjax.train_sae.dictionary_settings import Dictionaries
from mechjax.train_sae.fine_tuning_settings import FineTuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Source of the activations.

  Attributes:
    text: files, directories or patterns, data sets on a hub (hf:name:configuration:split), Debian packages
      (debian:name) or names of `mechjax.train_sae.corpora`, separated by commas.
    text_field: field of the text in JSONL, Parquet and data sets on a hub.
    context: tokens of a context, its first token included.
    contexts: maximum number of contexts to pack, for texts that are longer than the run; by default all.
    bos: id of the first token of a context; by default the tokenizer's BOS token, or else its EOS token.
    held_out_every: one context in this many is held out for evaluation.
    activations: 'disk' writes them once and shuffles across shards, 'stream' runs the model for each bucket.
    activation_tokens: maximum number of activations to write; by default all of the text.
    activation_dtype: dtype of the activations, on disk and in memory.
    activation_dir: directory of the activations, which several runs may share; by default in the directory of the run.
    max_norm_ratio: maximum norm of an activation that counts in training and evaluation, as a multiple of the median
      norm; 0 for no maximum. Models use a few tokens as attention sinks, whose activations have a hundred times the
      norm of others and would dominate every metric.
    shard_tokens: activations in one file.
    shards_per_bucket: number of files that are shuffled together as one bucket; a streamed bucket is as large.
    streams: number of streams of files that a batch is made from, a multiple of the number of hosts; one host with the
      same number of streams sees the same batches.
    forward_batch: contexts in one forward pass.
  """

  text: str = 'anarchism,debian-handbook'
  text_field: str = 'text'
  context: int = 128
  contexts: int | None = None
  bos: int | None = None
  held_out_every: int = 20
  activations: Literal['disk', 'stream'] = 'disk'
  activation_tokens: int | None = None
  activation_dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32'
  activation_dir: str = ''
  max_norm_ratio: float = flags.with_former_name(10.0, 'longest')
  shard_tokens: int = 65_536
  shards_per_bucket: int = 4
  streams: int = 1
  forward_batch: int = 16

  def __post_init__(self) -> None:
    for name in ('shard_tokens', 'shards_per_bucket', 'streams', 'forward_batch'):
      check_field(self, name, getattr(self, name) >= 1, 'at least 1')
    for name in ('context', 'held_out_every'):
      check_field(self, name, getattr(self, name) >= 2, 'at least 2')
    check_field(
      self,
      'max_norm_ratio',
      self.max_norm_ratio == 0 or self.max_norm_ratio >= 1,
      '0, or at least 1',
    )
    check_field(
      self, 'contexts', self.contexts is None or self.contexts >= 2, 'at least 2, or None'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
  """Devices and hosts.

  Attributes:
    mesh_data: number of devices that the tokens of a batch are sharded over; 0 for all that `mesh_model` leaves.
    mesh_model: number of devices that latents are sharded over.
    coordinator: address of the first process, host:port, if several processes train together.
    processes: number of processes.
    process: index of this process, from 0.
  """

  mesh_data: int = 0
  mesh_model: int = 1
  coordinator: str = ''
  processes: int = 1
  process: int = 0

  def __post_init__(self) -> None:
    check_field(self, 'mesh_data', self.mesh_data >= 0, 'at least 0')
    check_field(self, 'mesh_model', self.mesh_model >= 1, 'at least 1')
    check_field(
      self, 'process', 0 <= self.process < self.processes, f'below processes={self.processes}'
    )
    if self.processes > 1 and not self.coordinator:
      raise SAEError(
        f'processes={self.processes} and no coordinator', hint='--coordinator=host:port'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
  """Settings of a training run.

  Attributes:
    run: directory of the run; the same command with the same directory resumes a run that was stopped.
    model: name or path of a model.
    code: implementation of the forward pass of the model.
    site: input site of the dictionaries, such as resid_post.15; or a pattern, such as mlp_norm.*, for a dictionary of
      each site that it selects, all trained on one stream of activations.
    target: output site of transcoders, or a pattern that selects one site on each layer of the input sites; by default
      the dictionaries are autoencoders.
    skip: whether transcoders have a skip.
    crosscoder: whether dictionaries are crosscoders, each of all sites that the pattern selects.
    other_model: name or path of a second model with the same tokenizer, whose activations on the same tokens are
      further parts of crosscoders.
    batch: tokens of a step, over all hosts.
    seed: seed of the order of the data.
    keep_last: number of newest checkpoints to keep.
    keep_best: number of best checkpoints to keep in addition to the newest.
    format: file format of the dictionaries written at the end: sae_lens, gemma_scope, gemma_scope_2, sparsify or
      mechjax; sparsify and mechjax alone can hold transcoders with TopK latents, mechjax alone crosscoders; of
      cross-layer transcoders gemma_scope_2, circuit_tracer or mechjax.
    licence: identifier of a licence for the cards of the dictionaries, such as apache-2.0; none by default.
    tensorboard: whether to write curves for TensorBoard.
    wandb: project of Weights & Biases that the run is logged to; none by default.
  """

  run: str
  model: str = 'smollm2-135m'
  code: str = 'decoder'
  site: str
  target: str | None = None
  skip: bool = False
  crosscoder: bool = False
  other_model: str = ''
  batch: int = 4_096
  seed: int = 0
  keep_last: int = 2
  keep_best: int = 1
  format: Literal[
    'sae_lens', 'gemma_scope', 'gemma_scope_2', 'sparsify', 'circuit_tracer', 'mechjax'
  ] = 'sae_lens'
  licence: str = ''
  tensorboard: bool = False
  wandb: str = ''
  dictionaries: Dictionaries
  optimisation: Optimisation
  data: Data = Data()
  loop: LoopSettings = dataclasses.field(default_factory=LoopSettings)
  machine: Machine = Machine()
  fine_tuning: FineTuning = dataclasses.field(default_factory=FineTuning)

  def __post_init__(self) -> None:
    check_field(self, 'run', bool(self.run), 'a directory')
    check_field(self, 'site', bool(self.site), 'a site')
    check_field(self, 'skip', not self.skip or self.target is not None, 'False without target')
    if self.dictionaries.cross_layer and self.target is None:
      raise SAEError(
        f'{self.dictionaries.cross_layer} without a target',
        cause='cross-layer transcoders read the inputs of all layers and reconstruct their outputs',
        hint='--site=mlp_norm.* --target=mlp_out.*',
      )
    check_field(self, 'batch', self.batch >= 1, 'at least 1')
    annealed = self.dictionaries.p_relu or self.dictionaries.p_gated
    whole = annealed and not self.fine_tuning.begin_with  # which begins with the last exponent
    if whole and (self.dictionaries.p_end_step or 0) > self.optimisation.steps:
      raise SAEError(
        f'p_end_step={self.dictionaries.p_end_step} of a run of steps={self.optimisation.steps}',
        cause='the exponent would not reach p_end',
        hint=f'--p_end_step={self.optimisation.steps}',
      )
    self._check_crosscoder()
    self._check_streams()

  def _check_crosscoder(self) -> None:
    check_field(
      self, 'other_model', self.crosscoder or not self.other_model, 'empty without crosscoder'
    )
    if self.crosscoder and (self.target is not None or self.dictionaries.cross_layer):
      raise SAEError(
        f'crosscoder with target={self.target!r} and {self.dictionaries.cross_layer}',
        cause='crosscoders reconstruct the sites that they read',
        hint='--crosscoder --site=resid_post.{9,12} --batch_topk=...',
      )
    if self.crosscoder and self.fine_tuning.begin_with:
      raise SAEError('crosscoder with begin_with', cause='end-to-end training splices one site')

  def _check_streams(self) -> None:
    data, processes = self.data, self.machine.processes
    if data.streams % processes:
      raise SAEError(
        f'streams={data.streams} for processes={processes}', hint=f'--streams={processes}'
      )
    check_field(
      self, 'batch', self.batch % data.streams == 0, f'divisible by streams={data.streams}'
    )
    rows = self.batch // data.streams
    if data.shard_tokens * data.shards_per_bucket % rows:
      raise SAEError(
        f'shard_tokens={data.shard_tokens} times shards_per_bucket={data.shards_per_bucket} is not a multiple of the '
        f'{rows} tokens that a stream contributes to a batch',
        hint=f'--shard_tokens={-(-data.shard_tokens // rows) * rows}',
      )


MAY_CHANGE = frozenset(
  {'run', 'log_every', 'save_every', 'keep_last', 'keep_best', 'tensorboard', 'wandb', 'format'}
  | {'coordinator', 'process', 'activation_dir', 'licence'}
)
"""Settings that may change when a run is resumed: they do not affect any number."""
