"""Pages in a real browser: measured by a script at one width, in light or dark colours."""

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None
)

needed = pytest.mark.skipif(BROWSER is None, reason='there is no Chromium')


def measure(tmp_path, content, script, *, width=1200, dark=False, address=''):
  """The value of a JavaScript expression in a page, after its own scripts have run.

  A policy of the page that forbids other scripts is taken out first.
  """
  content = re.sub('<meta http-equiv[^>]*>', '', content)
  driver = f'document.documentElement.dataset.found = JSON.stringify({script})'
  path = tmp_path / 'page.html'
  path.write_text(f'{content}<script>{driver}</script>', encoding='utf-8')
  assert BROWSER is not None
  flags = ['--headless=new', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/user']
  flags += [f'--window-size={width},900', '--virtual-time-budget=2000', '--dump-dom']
  flags += [f'--blink-settings=preferredColorScheme={0 if dark else 1}']
  done = subprocess.run(
    [BROWSER, *flags, f'file://{path}{address}'], capture_output=True, timeout=120
  )
  assert done.returncode == 0, done.stderr[-2000:]
  (found,) = re.findall(r'data-found="([^"]*)"', done.stdout.decode()[:10_000])
  return json.loads(html.unescape(found))


FITS = '[innerWidth, document.documentElement.scrollWidth]'
"""Width of the window, and of the page: equal unless something sticks out."""
PAPER = 'getComputedStyle(document.body).backgroundColor'
