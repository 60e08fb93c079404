"""Dark matter: the part of a reconstruction error that is linear in the activation, and the part that is not.

The error e = x - x_hat of a sparse dictionary is far from noise. About half of it, and most of its norm, can be
predicted by a linear map of the activation itself (Engels et al. 2024, arXiv 2410.14670, sections 3 and 4):

    e ~ B [x; 1]                R^2, total and by dimension
    |e|, |e|^2 ~ b [x; 1]       R^2, next to that from single numbers: L0, the loss of the model, |x|, the token's mean
    n = e - B [x; 1]            the nonlinear error; FVU_nonlinear = |n|^2 / sum |x - mean(x)|^2

    analysis = DarkMatter()
    for x, x_hat, kept in ...: analysis.add(x, x_hat, kept, tokens=tokens, covariates={'L0': l0, 'loss': loss})
    report = analysis.report()
    report.vector.value, report.activation.squared_norm.interval(), report.fvu_nonlinear
    report.linear                                       the map B, for `error_losses`
    measure_dark_matter(sae, params, [(x, kept), ...])  the same for a dictionary

Every row of a batch is a context, and contexts are dealt to K blocks. Each block is predicted by the fit to all others,
so R^2 is that of contexts which the fit has not seen, and its standard error is over blocks. One pass is enough
(`normal_equations`).

Sharp edges:
  - A few tokens can have most of sum |e|^2: the first of a text, and delimiters with activations a hundred times as
    long as others. With them R^2 describes these tokens: leave them out (`mask_tokens`), and read `max_error_share`.
  - The published R^2 is a mean over dimensions and has no constant in its fit; `mean_r2` is that mean, with a constant.
  - A fit with n tokens loses D / n: errors without any relation to x have an R^2 of about -D / n.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Int64, Num

from mechjax import precision
from mechjax.errors import SAEError
from mechjax.sae.analysis.checks import check_count
from mechjax.sae.analysis.error_report import DarkMatterReport, ErrorMap, NormPrediction
from mechjax.sae.analysis.estimates import divide, explain
from mechjax.sae.analysis.masks import check_tokens, select_ids, select_numbers, select_vectors
from mechjax.sae.analysis.normal_equations import NormalEquations, SquareSums
from mechjax.sae.analysis.token_means import TokenMeans
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.ops.sparse import Sparse

Vectors = Float[np.ndarray | Array, 'B T D']
Targets = Float[np.ndarray | Array, 'B T E']
PerToken = Num[np.ndarray | Array, 'B T']
Rows = Float64[np.ndarray, 'n _']
NORM = '|x|'
"""Name of the length of the activation among the single numbers."""
TOKEN = 'token mean'
"""Name of the mean of the token among the single numbers."""


class DarkMatter:
  """Regressions of the error of a dictionary, one batch of contexts at a time.

  Args:
    n_blocks: K, number of blocks of contexts; 2 is one half against the other.

  Raises:
    SAEError: fewer than two blocks.
  """

  def __init__(self, n_blocks: int = 10):
    self.n_blocks = check_count('n_blocks', n_blocks, 2)
    self._from_x, self._targets = NormalEquations(n_blocks), NormalEquations(n_blocks)
    self._single: dict[str, NormalEquations] = {}
    self._from_tokens: TokenMeans | None = None
    self._kinds: list[str] | None = None
    self._n_contexts = 0
    self._errors = np.zeros(n_blocks)
    self._largest = 0.0

  def add(
    self,
    x: Vectors,
    x_hat: Targets,
    kept: Bool[np.ndarray | Array, 'B T'],
    *,
    y: Targets | None = None,
    tokens: Int[np.ndarray | Array, 'B T'] | None = None,
    covariates: Mapping[str, PerToken] | None = None,
  ) -> None:
    """Adds contexts.

    Args:
      x: activations that the dictionary reads, one context in each row.
      x_hat: its reconstructions.
      kept: tokens that count; see `mask_tokens`.
      y: targets of a transcoder; None for an autoencoder.
      tokens: ids of the tokens, for the mean of each token.
      covariates: other numbers of each token to predict the norm from, by name.

    Raises:
      SAEError: arrays that do not fit each other, other arguments than before, or values that are not finite.
    """
    named = dict(covariates or {})
    self._check_kinds(named, y is not None, tokens is not None)
    mask = check_tokens(x, kept)
    read = select_vectors('x', x, mask)
    target = read if y is None else select_vectors('y', y, mask)
    made = select_vectors('x_hat', x_hat, mask)
    if made.shape != target.shape:
      raise SAEError(
        f'reconstructions of width {made.shape[1]} of targets of width {target.shape[1]}',
        cause='a transcoder without its targets',
        hint='add(x, y_hat, kept, y=y)',
      )
    numbers = {name: select_numbers(name, value, mask) for name, value in named.items()}
    ids = None if tokens is None else select_ids(tokens, mask)
    block = self._deal(mask)
    for n in range(self.n_blocks):
      at = block == n
      if at.any():  # float64 of one block at a time stays in the cache
        own_x, own_y, own_made = (part[at].astype(np.float64) for part in (read, target, made))
        own = {name: value[at] for name, value in numbers.items()}
        self._add_block(n, own_x, own_y, own_made, own, None if ids is None else ids[at])

  def report(self) -> DarkMatterReport:
    """R^2 of all regressions.

    Raises:
      SAEError: no tokens, fewer contexts than blocks, fewer tokens than coefficients, or errors without variance.
    """
    found = self._from_x.cross_validate()
    E = found.total.shape[1] - 2
    residual, total = (sums[:, :E] for sums in found)
    if not total.sum() > 0:
      raise SAEError(
        'the error of the dictionary is the same for every token',
        hint='there is nothing to predict',
      )
    varies = total.sum(0) > 1e-20 * total.sum()
    scatter = self._targets.scatter().sum(1)
    linear = self._from_x.solve()
    return DarkMatterReport(
      n_tokens=int(self._from_x.counts.sum()),
      n_contexts=self._n_contexts,
      fvu=divide(self._errors, scatter),
      fvu_nonlinear=divide(residual.sum(1), scatter),
      vector=explain(residual.sum(1), total.sum(1)),
      per_dimension=np.where(
        varies, 1 - residual.sum(0) / np.where(varies, total.sum(0), 1), np.nan
      ),
      activation=_predict_norms(SquareSums(*(sums[:, E:] for sums in found))),
      single={name: _predict_norms(sums) for name, sums in self._measure_single().items()},
      linear=ErrorMap(
        jnp.asarray(linear.weights[:, :E], jnp.float32), jnp.asarray(linear.bias[:E], jnp.float32)
      ),
      max_error_share=self._largest / float(self._errors.sum()),
    )

  def _measure_single(self) -> dict[str, SquareSums]:
    found = {name: equations.cross_validate() for name, equations in self._single.items()}
    return (
      found if self._from_tokens is None else found | {TOKEN: self._from_tokens.cross_validate()}
    )

  def _add_block(
    self,
    n: int,
    x: Rows,
    y: Rows,
    made: Rows,
    numbers: dict[str, Float64[np.ndarray, ' n']],
    ids: Int64[np.ndarray, ' n'] | None,
  ) -> None:
    error = y - made
    lengths = _lengths(error)
    self._from_x.add(n, x, np.column_stack([error, lengths]))
    self._targets.add(n, np.zeros((len(y), 0)), y)
    for name, value in (numbers | {NORM: _lengths(x)[:, 0]}).items():
      self._single[name].add(n, value[:, None], lengths)
    if ids is not None:
      assert self._from_tokens is not None
      self._from_tokens.add(n, ids, lengths)
    self._errors[n] += lengths[:, 1].sum()
    self._largest = max(self._largest, float(lengths[:, 1].max()))

  def _deal(self, mask: Bool[np.ndarray, 'B T']) -> Int64[np.ndarray, ' n']:
    """Block of each kept token: contexts are dealt in turn."""
    used = mask.any(1)
    number = self._n_contexts + np.cumsum(used) - 1
    self._n_contexts += int(used.sum())
    return np.broadcast_to((number % self.n_blocks)[:, None], mask.shape)[mask]

  def _check_kinds(self, named: Mapping[str, Any], targets: bool, tokens: bool) -> None:
    if taken := {NORM, TOKEN} & {*named}:
      raise SAEError(
        f'a covariate with the name {sorted(taken)[0]!r}, which the report has already'
      )
    kinds = [*sorted(named), *(['y'] if targets else []), *(['tokens'] if tokens else [])]
    if self._kinds is None:
      self._kinds = kinds
      self._single = {name: NormalEquations(self.n_blocks) for name in (*named, NORM)}
      self._from_tokens = TokenMeans(self.n_blocks) if tokens else None
    if kinds != self._kinds:
      raise SAEError(
        f'a batch with {kinds} after one with {self._kinds}',
        hint='the same covariates, tokens and targets in every call',
      )


def measure_dark_matter(
  sae: Architecture,
  params: Params,
  batches: Iterable[Sequence[Any]],
  n_blocks: int = 10,
) -> DarkMatterReport:
  """Predictability of the error of an autoencoder; L0 is among the single numbers.

  Args:
    sae: the dictionary.
    params: its parameters.
    batches: (x [B, T, D], kept [B, T]), or (x, kept, token ids [B, T]); iterated over once.
    n_blocks: K, number of blocks of contexts.

  Raises:
    SAEError: a transcoder, batches of another form; otherwise as `DarkMatter`.
  """
  if sae.d_out is not None:
    raise SAEError(
      'a transcoder needs its targets', hint='DarkMatter().add(x, y_hat, kept, y=y) for each batch'
    )
  analysis = DarkMatter(n_blocks)
  for batch in batches:
    if not isinstance(batch, Sequence) or len(batch) not in (2, 3):
      raise SAEError(f'a batch is a {type(batch).__name__}', hint='(x, kept) or (x, kept, tokens)')
    add_reconstructions(analysis, sae, params, *batch)
  return analysis.report()


def add_reconstructions(
  analysis: DarkMatter,
  sae: Architecture,
  params: Params,
  x: Vectors,
  kept: Bool[np.ndarray | Array, 'B T'],
  tokens: Int[np.ndarray | Array, 'B T'] | None = None,
) -> None:
  """Adds contexts to the regressions of the error of an autoencoder; arguments as in `DarkMatter.add`."""
  x_hat, l0 = _reconstruct(sae, params, jnp.asarray(x))
  analysis.add(x, x_hat, kept, tokens=tokens, covariates={'L0': l0})


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(sae: Architecture, params: Params, x: Array) -> tuple[Array, Array]:
  """Reconstructions [B, T, D] and numbers of active latents [B, T]."""
  flat = precision.wide(x).reshape(-1, x.shape[-1])
  sparse = sae.encode_sparse(params, flat)
  latents = sae.encode(params, flat) if sparse is None else sparse
  values = latents.values if isinstance(latents, Sparse) else latents
  x_hat = sae.decode(params, latents, flat)
  active = jnp.sum(values > 0, -1, dtype=jnp.int32)
  return x_hat.reshape(x.shape), active.reshape(x.shape[:-1])


def _lengths(error: Rows) -> Float64[np.ndarray, 'n 2']:
  """|e| and |e|^2."""
  squares = np.einsum('nd,nd->n', error, error)
  return np.stack([np.sqrt(squares), squares], 1)


def _predict_norms(sums: SquareSums) -> NormPrediction:
  return NormPrediction(*(explain(sums.residual[:, n], sums.total[:, n]) for n in range(2)))
