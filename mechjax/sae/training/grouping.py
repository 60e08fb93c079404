"""Ensembles of a list of architectures: those that differ in traced hyperparameters or seeds only train as one.

    ensembles, order = group([TopK(..., k=16), TopK(..., k=32), ReLU(...)], 'resid_post.15', None, 0, 10_000_000)
    {*ensembles}, order                    {'topk', 'relu'}, [('topk', 0), ('topk', 1), ('relu', 0)]

A dictionary that gradients guide has those at the site that it reconstructs, `grad:resid_post.15`.

Sharp edge: a member of an ensemble equals a dictionary trained alone, so that grouping changes no number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture
from mechjax.sae.store.gradients import PREFIX
from mechjax.sae.training.ensembles import Ensemble
from mechjax.sae.training.exporting import kind_of

Place = tuple[str, int]
"""Name of an ensemble, and the number of a member."""


def group(
  dictionaries: Sequence[Architecture | Ensemble],
  site: str | Sequence[str],
  target: str | Sequence[str] | None,
  seeds: int | Sequence[int],
  dead_after_tokens: int,
) -> tuple[dict[str, Ensemble], list[Place]]:
  """Groups architectures.

  Args:
    dictionaries: architectures, or ensembles, which stay as they are.
    site: input site, or that of each layer.
    target: output site of transcoders, or that of each layer.
    seeds: one seed, or one for each architecture; those of ensembles are their own.
    dead_after_tokens: tokens without firing after which a latent is dead.

  Returns:
    Ensembles by name, and the place of every dictionary, in order.

  Raises:
    SAEError: an empty list; another number of seeds; a target that no dictionary has; something else than a
      dictionary.
  """
  _check(dictionaries, target)
  given = [seeds] * len(dictionaries) if isinstance(seeds, int) else [*seeds]
  if len(given) != len(dictionaries):
    raise SAEError(f'{len(given)} seeds for {len(dictionaries)} dictionaries')
  parts: list[tuple[Architecture | Ensemble, list[tuple[Architecture, int]]]] = []
  places: list[tuple[int, int]] = []
  for one, seed in zip(dictionaries, given):
    if isinstance(one, Ensemble):
      places += [(len(parts), n) for n in range(one.members)]
      parts.append((one, []))
      continue
    number = next((i for i, (first, _) in enumerate(parts) if _differs_in_values(one, first)), None)
    if number is None:
      number = len(parts)
      parts.append((one, []))
    places.append((number, len(parts[number][1])))
    parts[number][1].append((one, seed))
  reads, writes = _sites(site), None if target is None else _sites(target)
  found = [
    first if isinstance(first, Ensemble) else _join(members, reads, writes, dead_after_tokens)
    for first, members in parts
  ]
  names = _name(found)
  return dict(zip(names, found)), [(names[i], n) for i, n in places]


def check_sites(
  ensembles: Mapping[str, Ensemble], site: str | Sequence[str], target: str | Sequence[str] | None
) -> None:
  """Checks that ensembles read and reconstruct the site that an array without a name is of.

  Raises:
    SAEError: one names another site.
  """
  known = {*_list_sites(site), *_list_sites(target)}
  for key, one in ensembles.items():
    if other := sorted(s for s in {*one.sites} - known if not s.startswith(PREFIX)):
      raise SAEError(
        f'{key} is an ensemble of {other}, and the array is of {sorted(known)}',
        hint='Ensemble(reads=...) of the same site, or arrays by site: {site: x}',
      )


def check_widths(ensembles: Mapping[str, Ensemble], widths: Mapping[str, int]) -> None:
  """Checks that dictionaries have the widths of their sites.

  Raises:
    SAEError: one has not.
  """
  for key, one in ensembles.items():
    for sites, expected, name in (
      (one.input_sites, one.sae.parts or [one.sae.d_in] * len(one.input_sites), 'd_in'),
      (one.target_sites, one.sae.parts or [one.sae.target_width] * len(one.target_sites), 'd_out'),
    ):
      for site, width in zip(sites, expected, strict=True):
        if widths[site] != width:
          raise SAEError(
            f'{key} has {name}={width}, and activations of {site} have width {widths[site]}',
            hint=f'{type(one.sae).__name__}({name}={widths[site]}, ...)',
          )


def _check(dictionaries: Sequence[Architecture | Ensemble], target: object) -> None:
  if not isinstance(dictionaries, Sequence) or not dictionaries:
    raise SAEError(
      f'dictionaries={dictionaries!r:.100} should be a list of architectures',
      hint='[TopK(d_in=576, width=4608, k=32)]',
    )
  for one in dictionaries:
    if not isinstance(one, Architecture | Ensemble):
      raise SAEError(f'{one!r:.100} is not an architecture', hint='TopK(d_in=..., width=..., k=32)')
  saes = [one for one in dictionaries if isinstance(one, Architecture)]
  if target is not None and (bad := [s for s in saes if s.d_out is None]):
    raise SAEError(
      f'target={target!r} and a {type(bad[0]).__name__} without d_out',
      cause='an autoencoder reconstructs the site that it reads',
      hint='d_out=, the width of the target; or a call of its own for autoencoders',
    )


def _differs_in_values(one: Architecture, first: Architecture | Ensemble) -> bool:
  """Whether two architectures differ in traced hyperparameters at most."""
  if type(one) is not type(first):
    return False
  static = [f.name for f in dataclasses.fields(one) if f.compare and f.name not in one.TRACED]
  return all(getattr(one, name) == getattr(first, name) for name in static)


def _join(
  members: Sequence[tuple[Architecture, int]],
  reads: str | tuple[str, ...],
  writes: str | tuple[str, ...] | None,
  dead_after_tokens: int,
) -> Ensemble:
  first = members[0][0]
  values = {name: tuple(getattr(one, name) for one, _ in members) for name in first.TRACED}
  writes = writes if first.d_out is not None else None
  return Ensemble(
    sae=dataclasses.replace(first, **{name: max(own) for name, own in values.items()}),  # type: ignore[arg-type]
    reads=reads,
    writes=writes,
    seeds=tuple(seed for _, seed in members),
    hparams=values,
    dead_after_tokens=dead_after_tokens,
    guide=f'{PREFIX}{writes or reads}' if first.GUIDED else None,
  )


def _sites(site: str | Sequence[str]) -> str | tuple[str, ...]:
  return site if isinstance(site, str) else tuple(site)


def _list_sites(site: str | Sequence[str] | None) -> tuple[str, ...]:
  return () if site is None else (site,) if isinstance(site, str) else tuple(site)


def _name(ensembles: Sequence[Ensemble]) -> list[str]:
  """Names by kind, with a number after the first of a kind."""
  names: list[str] = []
  for one in ensembles:
    kind = kind_of(one.sae)
    count = sum(name.partition('-')[0] == kind for name in names)
    names.append(kind if not count else f'{kind}-{count + 1}')
  return names
