"""Settings of the experiment on automatic interpretation: used as stated, or refused before anything is written."""

import dataclasses

import jax
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments.autointerp import asking, measure, subject
from experiments.autointerp.scoring import make_example_settings, make_scorers
from experiments.autointerp.settings import SCORERS, Limits, Settings
from experiments.benchmarks import autointerp_examples
from mechjax import flags, sae
from mechjax.autointerp.record import Excerpt, LatentExamples
from mechjax.errors import MechjaxError
from mechjax.providers import Endpoint
from mechjax.viz import logs
from tests.experiments import loading
from tests.experiments import planted_latents as planted
from tests.experiments.planted_latents import TINY, Counted, make_settings

pytestmark = pytest.mark.slow
SERVICE = {'endpoint': 'http://127.0.0.1:9/v1', 'endpoint_model': 'm', 'behind': 'own'}


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(planted.model):
    yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return planted.write_home(tmp_path_factory.mktemp('autointerp'))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'dictionary': ''}, 'the place of a dictionary'),
    ({'explainers': ('table', 'gpt')}, "unknown name in explainers 'gpt'"),
    ({'scorers': ()}, 'one or more'),
    ({'scorers': ('detection', 'detection')}, 'different names'),
    ({'numbers': (3, 3)}, 'different numbers'),
    ({'numbers': (-1,)}, 'from 0'),
    ({'latents': 0}, 'latents=0 should be at least 1'),
    ({'tokens': 15}, 'at least 16'),
    ({'window': 16}, 'below context=16'),
    ({'max_density': 0.0}, 'above 0'),
    ({'seed': -1}, 'at least 0'),
    ({'shown': 1}, 'at least 2'),
    ({'endpoint_model': 'm'}, 'given with --endpoint'),
    ({'endpoint_parts': ('explanations',)}, 'left out without --endpoint'),
    ({'behind': 'x'}, 'own or unknown'),
    ({'out': ''}, 'a directory'),
    ({'endpoint': 'http://127.0.0.1:9/v1'}, 'given with --endpoint'),
    (SERVICE | {'behind': 'unknown'}, '--behind=own'),
    (SERVICE | {'scorers': ('surprisal',)}, "without 'surprisal'"),
    (SERVICE | {'endpoint': 'ftp://127.0.0.1/v1'}, 'is not http'),
  ],
)
def test_settings_out_of_range_are_refused(changes, message):
  with pytest.raises(MechjaxError, match=message):
    Settings(**{'dictionary': 'out/a'} | TINY | changes)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'concurrency': 0}, 'at least 1'),
    ({'timeout': 0.0}, 'above 0'),
    ({'budget_tokens': -1}, 'at least 0'),
    ({'price_in': float('nan')}, 'a number from 0'),
    ({'budget_money': 1.0}, 'without --price_in'),
  ],
)
def test_limits_out_of_range_are_refused(changes, message):
  with pytest.raises(MechjaxError, match=message):
    Limits(**changes)


@pytest.mark.parametrize(
  'changes',
  [
    {'endpoint': 'https://user:secret-key-1@api.example.org/v1'},
    {'endpoint': 'https://api.example.org/v1?key=secret-key-1'},
    {'limits': Limits(key_variable='secret-key-1')},
  ],
)
def test_a_key_in_the_settings_is_refused_and_not_shown(changes):
  with pytest.raises(MechjaxError) as caught:
    Settings(**{'dictionary': 'out/a'} | TINY | SERVICE | changes)
  assert 'secret-key-1' not in str(caught.value)


def test_every_setting_is_a_flag():
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  values(
    [
      'autointerp',
      '--dictionary=out/a',
      '--scorers=detection',
      '--numbers=3,5',
      '--budget_tokens=2_000',
    ]
  )
  given = {'dictionary': 'out/a', 'scorers': ('detection',), 'numbers': (3, 5)}
  assert handle.value() == Settings(**given, limits=Limits(budget_tokens=2000))


def test_the_service_has_the_settings(monkeypatch):
  limits = Limits(
    key_variable='A_KEY', concurrency=3, timeout=7.0, budget_tokens=900, budget_money=2.0, price_in=1.0,
    price_out=4.0,
  )  # fmt: skip
  made = Settings(dictionary='out/a', limits=limits, **SERVICE).make_endpoint()
  assert isinstance(made, Endpoint)
  assert (made.url, made.model, made.api) == (SERVICE['endpoint'], 'm', 'chat')
  assert (made.key_variable, made.concurrency, made.timeout) == ('A_KEY', 3, 7.0)
  assert (made.budget.tokens, made.budget.money) == (900, 2.0)
  assert made.prices.cost(1_000_000, 1_000_000) == 5.0
  none = dataclasses.replace(limits, budget_tokens=0, budget_money=0.0)
  nothing = Settings(dictionary='out/a', limits=none, **SERVICE).make_endpoint()
  assert (nothing.budget.tokens, nothing.budget.money) == (0, 0.0)
  free = Settings(dictionary='out/a', **SERVICE).make_endpoint()
  assert free.budget.tokens is free.budget.money is None


def test_a_service_may_explain_while_the_local_model_scores(home, tmp_path, monkeypatch):
  monkeypatch.setattr(asking, 'Local', Counted().make)
  explains = SERVICE | {'behind': 'unknown', 'endpoint_parts': ('explanations',)}
  settings = make_settings(home, tmp_path / 'out', **explains)
  prepared = subject.prepare(settings, planted.model)
  asked = asking.open_providers(settings, prepared)
  assert not asked.is_local('explanations')
  assert asked.is_local('scores')
  assert asked.identities == {
    'explanations': settings.make_endpoint().identity,
    'scores': 'scripted',
  }
  alone = make_settings(home, tmp_path / 'out', **SERVICE)
  monkeypatch.setattr(asking, 'Local', lambda model: pytest.fail('no local model is needed'))
  assert not asking.open_providers(alone, prepared).is_local('scores')


def test_a_missing_key_is_found_before_anything_is_written(home, tmp_path, monkeypatch):
  monkeypatch.delenv('NO_SUCH_KEY', raising=False)
  limits = Limits(key_variable='NO_SUCH_KEY')
  settings = make_settings(home, tmp_path / 'out', limits=limits, **SERVICE)
  with pytest.raises(MechjaxError, match='NO_SUCH_KEY is not set'):
    measure.measure(settings, subject.prepare(settings, planted.model))
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'dictionary': '{home}/nothing'}, 'nothing'),
    ({'dictionary': '{home}/narrow'}, 'reads 5 numbers, and resid_post.0 has 16'),
    ({'dictionary': '{home}/elsewhere'}, 'resid_post.9 is not a site'),
    ({'dictionary': '{home}/nameless'}, 'do not name a site'),
    ({'site': 'resid_post.1'}, 'resid_post.0'),
    ({'site': 'nothing.x'}, 'is not a site of planted'),
    ({'site': 'resid_post.{{3'}, 'no site has this name'),
    ({'model': 'gpt2'}, 'planted'),
    ({'numbers': (6,)}, 'latent 6 of a dictionary with width=6'),
    ({'tokens': 100_000}, 'has .* tokens'),
  ],
)
def test_input_that_does_not_fit_is_refused_before_anything_is_written(
  home, tmp_path, changes, message
):
  names = {'model_name': 'planted'}
  for name, width, about in (
    ('narrow', 5, names | {'hook_name': planted.SITE}), ('elsewhere', 16, names | {'hook_name': 'resid_post.9'}),
    ('nameless', 16, names),
  ):  # fmt: skip
    if not (home / name).exists():
      one = sae.TopK(d_in=width, width=4, k=2)
      sae.save(home / name, one, one.init(jax.random.key(0)), format='mechjax', about=about)
  given = {k: v.format(home=home) if isinstance(v, str) else v for k, v in changes.items()}
  with pytest.raises(MechjaxError, match=message):
    subject.prepare(make_settings(home, tmp_path / 'out', **given), planted.model)
  assert not (tmp_path / 'out').exists()


def test_a_directory_belongs_to_one_choice_of_latents_and_texts(home, tmp_path, monkeypatch):
  monkeypatch.setattr(asking, 'Local', Counted().make)
  settings = make_settings(
    home, tmp_path / 'out', scorers=('detection',), latents=6, min_contexts=1000
  )
  prepared = subject.prepare(settings, planted.model)
  with pytest.raises(MechjaxError, match='0 latents are active in min_contexts=1000'):
    measure.measure(settings, prepared, lambda name: None)
  for changes in ({'latents': 3}, {'seed': 1}, {'window': 6}, {'simulator': 'other'}):
    with pytest.raises(MechjaxError, match='holds results of other settings'):
      measure.measure(dataclasses.replace(settings, **changes), prepared)


def test_a_transcoder_has_no_fvu_and_the_header_of_its_dashboard_says_so(home, tmp_path):
  prepared = subject.prepare(make_settings(home, tmp_path / 'out'), planted.model)
  one = dataclasses.replace(prepared.sae, d_out=16)
  counts = {'tokens': np.full(6, 10)}
  found = measure.measure_figures(dataclasses.replace(prepared, sae=one), np.zeros(1), counts)
  assert logs.number(found['fvu']) == 'NaN'
  assert found['l0'] == 60 / found['tokens']


def test_the_benchmark_counts_equal_and_overlapping_texts():
  def make(sequence, start, first, active):
    tokens = np.arange(first, first + 4)
    return Excerpt(sequence, start, tokens, ('a',) * 4, np.full(4, np.float32(active)))

  shown = (make(0, 0, 1, True), make(1, 8, 7, True))
  scored = (make(2, 0, 1, True), make(3, 10, 9, True))
  examples = LatentExamples(0, 1.0, 0.1, shown, (), scored, (), (), ())
  assert autointerp_examples.count_both(examples) == 1
  # the same sequence, which a real collection cannot have
  object.__setattr__(examples, 'active', (make(1, 11, 20, True), make(1, 12, 30, True)))
  assert autointerp_examples.count_both(examples) == 1


def test_scorers_and_examples_have_the_sizes_of_the_settings():
  settings = Settings(
    dictionary='out/a', scorers=SCORERS, active=7, inactive=9, hard=2, simulated=3, rounds=4
  )
  made = {one.name: one for one in make_scorers(settings, planted.model())}
  assert [*made] == [*SCORERS]
  assert (made['simulation'].n_top, made['simulation'].n_random) == (3, 3)
  detection = made['detection']
  assert (detection.n_active, detection.n_inactive, detection.n_hard) == (7, 9, 2)
  assert (made['fuzzing'].n, made['surprisal'].n_active, made['embedding'].n_inactive) == (7, 7, 9)
  assert made['intruder'].rounds == 4
  sizes = make_example_settings(settings)
  assert (sizes.n_active, sizes.n_inactive, sizes.n_hard, sizes.n_random) == (7, 9, 2, 6)
