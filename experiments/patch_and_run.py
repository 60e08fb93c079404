"""Patch and run: a model in upstream code, changed at some sites, and its predictions before and after.

  python -m experiments.patch_and_run --code=tunix --sites='mlp_out.0' --intervention=zero

Installs the patch of the code base, runs the prompt without and with the intervention at every
selected site, prints both predictions and writes `patch_and_run.json`. Cost: 15 seconds on two
CPU cores once the model is cached. Expected from the line above: ' Paris' at 0.77 loses
11.5 nats and no word is likely, because all later layers of SmolLM2 depend on its first MLP.

Interventions, each applied to the whole value of a site:

    zero, mean       zeros; the mean over positions
    scale=0.5        times a factor
    noise=0.1        plus normal noise, in units of the site's own standard deviation
    replace=TEXT     the value at the same site for another prompt of as many tokens

Sharp edge: an intervention acts on the value in the changed run, so a later site already contains the
effects of the earlier ones.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app

import mechjax
from mechjax import errors, flags, harvest
from mechjax.logits import kl_divergence, log_probs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A model, the sites where it is changed, and the intervention.

  Attributes:
    model: name of a model, or path of a GGUF file.
    code: code base that computes the forward pass.
    prompt: text to continue.
    sites: sites where the model is changed, as patterns such as 'mlp_out.{3..5}, z.7'.
    intervention: zero, mean, scale=0.5, noise=0.1 or replace=TEXT.
    out: directory for the metrics.
  """

  model: str = 'smollm2-135m'
  code: str = 'tunix'
  prompt: str = 'The capital of France is'
  sites: str = 'mlp_out.0'
  intervention: str = 'zero'
  out: str = 'out'


def intervention(
  text: str, model: Any, tokens: jax.Array, values: Any
) -> dict[str, Callable[[Any], Any]]:
  """Makes the plants of an intervention.

  Args:
    text: an intervention, as in the flag.
    model: the model.
    tokens: the prompt, [1, T].
    values: values of the sites for the prompt, by site.

  Returns:
    A function of the value, by site.

  Raises:
    MechjaxError: the intervention is unknown or does not fit the sites.
  """
  kind, _, argument = text.partition('=')
  if kind == 'replace':
    other = model.tokens(argument)
    if other.shape != tokens.shape:
      raise errors.MechjaxError(
        f'{argument!r} has {other.shape[1]} tokens, the prompt has {tokens.shape[1]}',
        hint='use a prompt of as many tokens, so that every position has a counterpart',
      )
    others = harvest.reap(model, sites=list(values))(other)
    return {site: _replace(others[site]) for site in values}
  makers = {'zero': _zero, 'mean': _mean, 'scale': _scale, 'noise': _noise}
  if kind not in makers:
    raise errors.unknown(errors.MechjaxError, 'intervention', kind, [*makers, 'replace'])
  change = makers[kind](argument, tokens)
  return {site: lambda value: jax.tree.map(change, value) for site in values}


def _replace(value: Any) -> Callable:
  return lambda _: value


def _zero(argument: str, tokens: jax.Array) -> Callable:
  return jnp.zeros_like


def _mean(argument: str, tokens: jax.Array) -> Callable:
  def mean(x: jax.Array) -> jax.Array:
    if x.shape[:2] != tokens.shape:
      raise errors.MechjaxError(
        f'the mean over positions needs [1, T, …], not {x.shape}',
        hint='choose sites whose second axis is the position, such as resid_post or z',
      )
    return jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)

  return mean


def _scale(argument: str, tokens: jax.Array) -> Callable:
  factor = float(argument)
  return lambda x: x * factor


def _noise(argument: str, tokens: jax.Array) -> Callable:
  size, key = float(argument), jax.random.key(0)
  return lambda x: x + size * x.std() * jax.random.normal(key, x.shape, x.dtype)


def top_tokens(model: Any, log_probs_V: jax.Array, k: int = 5) -> list[dict[str, Any]]:
  """The k likeliest next tokens and their probabilities."""
  best, ids = jax.lax.top_k(log_probs_V, k)
  pairs = zip(ids.tolist(), jnp.exp(best).tolist())
  return [{'token': model.text(i), 'probability': p} for i, p in pairs]


def measure(model: Any, prompt: str, sites: str, what: str) -> dict[str, Any]:
  """Measures the intervention: plain numbers and strings, ready for JSON."""
  tokens = model.tokens(prompt)
  logits, values = harvest.call_and_reap(model, sites=sites)(tokens)
  plants = intervention(what, model, tokens, values)
  changed = harvest.plant(model)(plants, tokens)
  before, after = (log_probs(x[0, -1]) for x in (logits, changed))
  answer = int(before.argmax())
  return {
    'model': model.name,
    'prompt': prompt,
    'sites': list(values),
    'intervention': what,
    'norms': {site: _norm(value) for site, value in values.items()},
    'before': top_tokens(model, before),
    'after': top_tokens(model, after),
    'answer': model.text(answer),
    'answer_nats': float(after[answer] - before[answer]),
    'kl_nats': float(kl_divergence(before, after)),
  }


def _norm(value: Any) -> float:
  """Root mean square of a site's value; masked scores are left out."""
  flat = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(value)])
  return float(jnp.sqrt(jnp.mean(flat**2, where=flat > -1e30)))


def report(metrics: dict[str, Any]) -> str:
  """The metrics as lines of text."""
  lines = [
    f'{metrics["prompt"]!r} in {metrics["model"]}, '
    f'{metrics["intervention"]} at {", ".join(metrics["sites"])}',
    f'{"before":>26}   after',
  ]
  for one, other in zip(metrics['before'], metrics['after']):
    left = f'{one["token"]!r:>18} {one["probability"]:.3f}'
    lines.append(f'{left:>26}   {other["probability"]:.3f} {other["token"]!r}')
  lines.append(
    f'{metrics["answer"]!r} {metrics["answer_nats"]:+.3f} nats, KL {metrics["kl_nats"]:.3f} nats'
  )
  return '\n'.join(lines)


def run(settings: Settings) -> None:
  """Makes the intervention, prints its effect and writes the metrics."""
  model = mechjax.load(settings.model, code=settings.code)
  metrics = measure(model, settings.prompt, settings.sites, settings.intervention)
  metrics['code'] = settings.code
  out = Path(settings.out)
  out.mkdir(parents=True, exist_ok=True)
  (out / 'patch_and_run.json').write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + '\n')
  print(report(metrics))
  print(f'wrote {out}/patch_and_run.json')


def main(argv: list[str], handle: flags.Handle[Settings]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  run(handle.value())


if __name__ == '__main__':
  settings = flags.define(Settings)
  app.run(lambda argv: main(argv, settings))
