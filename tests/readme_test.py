"""The README is correct: its code runs and prints the stated output, its commands and files exist."""

import contextlib
import io
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import mechjax

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


@pytest.mark.optimised
@pytest.mark.upstream
@pytest.mark.parametrize(
  'block',
  [0, 1, 2, 3, 4, 5],
  ids=['first screen', 'decoder', 'patching', 'facts', 'circuits', 'steering'],
)
def test_the_code_prints_what_its_comments_say(smollm2, monkeypatch, tmp_path, block):
  monkeypatch.chdir(tmp_path)
  code = re.findall(r'```python\n(.*?)```', README, re.DOTALL)[block]
  promised = re.findall(r'^ *print\(.*\S +# (.*)$', code, re.MULTILINE)
  assert len(promised) == code.count('print(')
  load = mechjax.load
  loaded = lambda name, code='decoder': smollm2 if code == 'tunix' else load(name)  # noqa: E731
  monkeypatch.setattr(mechjax, 'load', loaded, raising=False)
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    exec(compile(code, 'README.md', 'exec'), {})
  assert_same_output(printed.getvalue().splitlines(), promised)


def assert_same_output(found, promised):
  """Asserts equal words and whole numbers; decimals up to one in the last place, as machines round differently."""
  decimal = r'-?\d+\.\d+'
  assert [re.sub(decimal, '#', line) for line in found] == [
    re.sub(decimal, '#', line) for line in promised
  ]
  numbers = zip(*(re.findall(decimal, '\n'.join(lines)) for lines in (found, promised)))
  for number, other in numbers:
    assert abs(float(number) - float(other)) <= 1.01 * 10.0 ** -len(other.partition('.')[2]), number


# The last of two equal flags is obeyed: all written flags are parsed, and only a part of the work is done.
LESS = {
  'mechjax.train_sae': ['--contexts=800'],
  'mechjax.eval_sae': ['--tokens=512', '--latents=10'],
}


@pytest.mark.optimised
@pytest.mark.slow
def test_the_commands_that_train_a_dictionary_do(tmp_path):
  (block,) = re.findall(r'```sh\n(python -m mechjax.train_sae.*?)```', README, re.DOTALL)
  run = tmp_path / 'sae'
  env = {**os.environ, 'XLA_FLAGS': ''}  # as users have it: one device
  text = 'anarchism' if shutil.which('apt-get') else 'BUILD_NOTES.md,README.md'
  for command in block.replace('\\\n', '').replace('out/sae', str(run)).splitlines():
    words = shlex.split(command.replace('--text=anarchism', f'--text={text}'))
    done = subprocess.run(
      [sys.executable, *words[1:], *LESS[words[2]]], cwd=ROOT, env=env, check=False
    )
    assert done.returncode == 0, command
  assert sorted(p.name for p in run.glob('dictionaries/*/*/*.safetensors'))
  assert (run / 'evaluation/features_topk_1.html').exists()


def test_the_commands_are_targets_of_the_makefile():
  makefile = (ROOT / 'Makefile').read_text()
  commands = re.findall(r'^make (\w+)', README, re.MULTILINE)
  assert commands == ['demo', 'test']
  for target in commands:
    assert f'\n{target}:' in makefile


def test_every_file_that_is_named_exists():
  links = re.findall(r'\]\(([^)]+)\)', README)
  named = re.findall(r'`((?:mechjax|patches|experiments)/[\w/.]*)`', README)
  for path in [*links, *named]:
    assert (ROOT / path).exists(), path
