"""An interrupted run ends in the same state as an uninterrupted one; errors are reported and damage nothing."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import MissingExtraError, SAEError
from mechjax.sae.store import Scale, Share, batches
from mechjax.sae.training import Checkpoints, Journal, TensorBoard, WandB, apply_scales, feed
from mechjax.sae.training.checkpoints import OBJECTIVE
from mechjax.sae.training.loop import LoopSettings, TrainingReport, objective, shapes, train
from mechjax.sae.training.loop import _Step as Step
from mechjax.sae.training.state import Metrics
from tests.sae import killing
from tests.sae.training import SCALES, STEPS, B, MadeUp, feed_of, trained, trainer

pytestmark = pytest.mark.optimised


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  return trained(tmp_path_factory.mktemp('undisturbed')).state


def same(a, b):
  """Every array, bit for bit."""
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def test_the_state_of_every_kind_moves(undisturbed):
  start = trainer().init()
  for name, ensemble in undisturbed.ensembles.items():
    for key, x in ensemble.params.items():
      assert (np.asarray(x) != np.asarray(start.ensembles[name].params[key])).any(), (name, key)
  # Of one ensemble alone it may be that every latent fired in the last batch.
  assert any(
    np.asarray(ensemble.tokens_since_fired).any() for ensemble in undisturbed.ensembles.values()
  )
  assert (np.asarray(undisturbed.ensembles['batch'].resampled_at) > 0).all()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_same_bits(
  tmp_path, undisturbed, number
):
  before = signal.getsignal(number)

  def interrupt(report):
    if report.step == 25:
      os.kill(os.getpid(), number)

  stopped = trained(tmp_path, interrupt)
  assert not stopped.finished
  assert 25 <= int(stopped.state.step) <= 27
  assert signal.getsignal(number) is before
  told = []
  result = trained(tmp_path, told.append)
  assert result.finished
  assert told[0].step == 30  # and not from the start
  same(result.state, undisturbed)


def test_a_run_that_is_asked_to_stop_right_after_a_checkpoint_does_not_save_it_again(tmp_path):
  """No batch is ready then, so that no step follows the checkpoint."""

  class Slow:
    waited = 0.0

    def __init__(self, position):
      self.batches = feed_of(trainer(), MadeUp(), position)

    def __enter__(self):
      return self

    def __exit__(self, *error):
      self.batches.close()

    def take(self, give_up):
      return None if give_up() else self.batches.take(give_up=give_up)

  def interrupt(report):
    os.kill(os.getpid(), signal.SIGTERM)

  with Checkpoints(tmp_path / 'checkpoints') as kept:
    loop = LoopSettings(log_every=5, save_every=5)
    result = train(trainer(), Slow, {}, kept, loop, interrupt, tmp_path / 'dump')
    assert kept.steps == [5]
  assert not result.finished
  assert result.state.step == 5


@pytest.mark.slow
def test_a_run_that_is_finished_is_not_trained_again(tmp_path, undisturbed):
  trained(tmp_path)
  told = []
  same(trained(tmp_path, told.append).state, undisturbed)
  assert told == []


LONG = 1_000


def child(begun, home, cache):
  """Trains slowly; calls `begun` at the first report, or at once in one process of five.

  The first reported step of each process is recorded, because a process that started again would give the same bits.
  """
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  if os.getpid() % 5 == 0:
    begun()

  lived = []

  def slowly(report):
    begun()
    if not lived:
      with (Path(home) / 'lives').open('a') as file:
        file.write(f'{report.step}\n')
    lived.append(report)
    time.sleep(0.1)

  trained(home, slowly, save_every=3, steps=LONG)


@pytest.mark.slow
def test_a_run_that_is_killed_at_ten_moments_ends_with_the_same_bits(tmp_path):
  home, args = tmp_path / 'killed', (str(tmp_path / 'killed'), str(tmp_path / 'cache'))
  for moment in np.random.default_rng(0).uniform(0, 1.5, 10):
    assert not killing.done_by(child, args, moment)
  first = [int(line) for line in (home / 'lives').read_text().split()]
  assert first == sorted(first)
  assert first[-1] > first[0]  # a process resumed from the checkpoint of an earlier one
  there = trained(home, save_every=300, steps=LONG).state
  same(there, trained(tmp_path / 'other', save_every=300, steps=LONG).state)


@pytest.mark.slow
def test_a_number_that_is_not_finite_stops_the_run_and_leaves_its_checkpoints(
  tmp_path, undisturbed
):
  spoilt = 5  # buckets of four batches, of which the order is that of their numbers
  with pytest.raises(
    SAEError, match=r'step 20 gave numbers that are not finite: .*loss.*nan'
  ) as raised:
    trained(tmp_path, source=MadeUp(spoilt=spoilt))
  dump = next((tmp_path / 'dump').iterdir())
  assert str(dump) in str(raised.value)
  with np.load(dump / 'arrays.npz', allow_pickle=False) as arrays:
    assert np.isnan(arrays["['batch']['x']"]).any()
    last = {name: x for name, x in arrays.items() if 'state' in name}
  assert int(last["['state'].step"]) == 20
  assert all(np.isfinite(x).all() for x in last.values())
  assert 'nan' in (dump / 'metrics.json').read_text()
  with Checkpoints(tmp_path / 'checkpoints') as kept:
    assert kept.steps[-1] == 14
  same(trained(tmp_path).state, undisturbed)


def test_a_checkpoint_that_is_damaged_is_an_error_and_stays(tmp_path):
  trained(tmp_path)
  victim = tmp_path / 'checkpoints' / str(STEPS)
  for path in [p for p in victim.rglob('*') if p.is_file() and p.parent.name == 'd']:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  before = {p: p.read_bytes() for p in victim.rglob('*') if p.is_file()}
  with pytest.raises(SAEError, match=f'checkpoint of step {STEPS} cannot be restored') as raised:
    trained(tmp_path)
  assert 'move that directory away' in str(raised.value)
  assert before == {p: p.read_bytes() for p in victim.rglob('*') if p.is_file()}
  victim.rename(tmp_path / 'away')
  assert trained(tmp_path).finished


def test_a_checkpoint_that_was_being_written_is_none(tmp_path, undisturbed):
  trained(tmp_path)
  newest, told = tmp_path / 'checkpoints' / str(STEPS), []
  newest.rename(newest.with_name(f'{STEPS}.orbax-checkpoint-tmp'))
  same(trained(tmp_path, told.append).state, undisturbed)
  assert told[0].step == STEPS


def test_checkpoints_of_other_dictionaries_are_refused(tmp_path):
  with Checkpoints(tmp_path) as kept:
    kept.save(3, {'a': np.zeros(4, np.float32)}, objective=0.0)
    kept.wait()
    with pytest.raises(SAEError, match='step 3 cannot be restored'):
      kept.restore(shapes(trainer()))
    with pytest.raises(SAEError, match=r'no checkpoint of step 9.*'):
      kept.restore(shapes(trainer()), 9)


def test_the_newest_and_the_best_are_kept(tmp_path):
  with Checkpoints(tmp_path, last=2, best=2) as kept:
    for step, objective in enumerate([5.0, 1.0, 4.0, 0.5, 6.0, 7.0]):
      kept.save(step, {'a': np.full(3, step)}, objective=objective)
    kept.wait()
    assert kept.steps == [1, 3, 4, 5]


def test_the_objective_is_the_loss_with_the_sparsity_coefficient_that_is_still_to_come():
  metrics = {'jump': {'loss': jnp.array([1.0, 2.0]), 'sparsity': jnp.array([0.2, 0.4])}}
  metrics = Metrics(metrics, jnp.float32(0), jnp.asarray(True))
  one = trainer(sparsity_warm_up_steps=20)
  for done, factor in ((6, 0.25), (21, 1), (50, 1)):
    wanted = np.mean([1 + 0.2 * (1 / factor - 1), 2 + 0.4 * (1 / factor - 1)])
    assert objective(one, Step(done, metrics, {})) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_what_decides_which_is_best_counts_the_whole_sparsity_coefficient(tmp_path):
  """The loss is small while the coefficient is, and the first checkpoint would be the best for ever."""
  told = {}
  trained(tmp_path, lambda r: told.setdefault(r.step, r.metrics), save_every=5)
  with Checkpoints(tmp_path / 'checkpoints') as kept:
    objectives = {s: kept._manager.metrics(s)[OBJECTIVE] for s in kept.steps}
  for step, found in objectives.items():
    factor = min(1, (step - 1) / 20)
    parts = [own['loss'] + own['sparsity'] * (1 / factor - 1) for own in told[step].values()]
    np.testing.assert_allclose(found, np.concatenate(parts).mean(), rtol=1e-5)


def test_a_batch_is_the_rows_of_all_streams_one_after_the_other():
  source, one = MadeUp(), trainer()
  kept = {'batch': B, 'seed': 3, 'position': 2}
  with feed(source, SCALES, one.batch_sharding, streams=4, **kept) as ahead:
    position, batch = next(ahead)
  streams = [
    next(batches(source, rows=B // 4, seed=3, position=2, share=Share(n, 4)))[1]['x']
    for n in range(4)
  ]
  assert position == 3
  np.testing.assert_array_equal(batch['x'], np.concatenate(streams))
  assert len({x.tobytes() for x in streams}) == 4
  with pytest.raises(SAEError, match='from 3 streams on 1 hosts'):
    feed(source, SCALES, one.batch_sharding, streams=3, **kept)


def test_an_activation_that_is_too_long_gives_its_place_to_another_at_every_site():
  scales = {'x': Scale(2.0, np.zeros(1), 9.0), 'y': Scale(1.0, np.zeros(1))}
  x = np.float32([[1], [99], [3], [-50], [5]])
  found = apply_scales({'x': x, 'y': 10 * x}, scales)
  np.testing.assert_array_equal(found['x'][:, 0], [0.5, 0.5, 1.5, 1.5, 2.5])
  np.testing.assert_array_equal(found['y'][:, 0], [10, 10, 30, 30, 50])
  with pytest.raises(SAEError, match='all 1 activations'):
    apply_scales({'x': x[1:2], 'y': x[1:2]}, scales)


# --- reports ----------------------------------------------------------------------------------------------


def told(step, l0):
  return TrainingReport(
    step, {'jump': {n: np.float32([l0, 2]) for n in ('loss', 'l0', 'fvu', 'dead')}}, 1e-3, 2.0, 0.25
  )


def lines(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def journal(path, done=0, **more):
  return Journal(path, steps=100, batch=64, operations=1e6, peak=1e7, done=done, **more)


def test_sites_of_one_pattern_are_one_entry_on_the_screen_and_all_in_the_file(tmp_path, capsys):
  own = {name: np.array([0.5, 0.25]) for name in ('loss', 'l0', 'fvu', 'dead')}
  other = {name: 3 * value for name, value in own.items()}
  layers = own | {'fvu_by_layer': np.ones((2, 3))}
  metrics = {'topk/x.0': own, 'topk/x.1': other, 'clt': layers}
  with journal(tmp_path) as one:
    one.write(TrainingReport(50, metrics, 1e-3, 2.0, 0.1))
  said = capsys.readouterr().out
  assert '| topk (mean of 2 sites) loss 1/0.5 l0 1/0.5 fvu 1/0.5 dead 1/0.5 | clt loss 0.5' in said
  (line,) = lines(tmp_path)
  assert line['topk/x.1']['fvu'] == [1.5, 0.75]
  assert line['clt']['fvu_by_layer'] == [[1.0] * 3] * 2


def test_a_report_is_a_line_of_json_and_one_on_the_screen(tmp_path, capsys):
  with journal(tmp_path) as one:
    one.write(told(10, 7.5))
  (line,) = lines(tmp_path)
  assert line['jump']['l0'] == [7.5, 2]
  assert (line['step'], line['tokens'], line['tokens_per_second']) == (10, 640, 128)
  assert (line['matmul_share'], line['wait']) == (0.2, 0.25)
  assert 'step 10/100' in (screen := capsys.readouterr().out)
  assert 'l0 7.5/2' in screen


def test_a_run_that_goes_on_writes_no_step_twice(tmp_path):
  with journal(tmp_path) as one:
    for step in (10, 20, 30):
      one.write(told(step, 1))
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 40, "tok')  # killed while it was written
  with journal(tmp_path, done=20) as one:
    one.write(told(30, 2))
  assert [(line['step'], line['jump']['l0'][0]) for line in lines(tmp_path)] == [
    (10, 1),
    (20, 1),
    (30, 2),
  ]


def test_curves_arrive_in_tensorboard(tmp_path):
  with journal(tmp_path, curves=(TensorBoard(tmp_path / 'tb', 0),)) as one:
    one.write(told(10, 7.5))
  points = dict(scalars(tmp_path / 'tb'))
  assert points['jump/l0/0', 10] == 7.5
  assert points['wait', 10] == 0.25


def scalars(directory):
  """The points of TensorBoard's files: records of a length, its checksum, an event, its checksum."""
  from tensorboardX.proto.event_pb2 import Event

  for path in directory.iterdir():
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], 'little')
      event = Event.FromString(data[at + 12 : at + 12 + size])
      at += 16 + size
      for value in event.summary.value:
        yield (value.tag, event.step), value.simple_value


def test_curves_without_their_library_name_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(MissingExtraError, match='logging'):
    WandB('project', tmp_path, {})


@pytest.mark.slow
def test_curves_arrive_in_weights_and_biases(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  with journal(tmp_path, curves=(WandB('project', tmp_path, {'batch': 64}),)) as one:
    one.write(told(10, 7.5))
  (file,) = tmp_path.glob('wandb/offline-run-*/*.wandb')
  deadline = time.monotonic() + 60  # a process of its own writes the file, perhaps a moment later
  while b'jump/l0/0' not in file.read_bytes():
    assert time.monotonic() < deadline
    time.sleep(0.1)
