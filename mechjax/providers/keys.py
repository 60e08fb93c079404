"""Keys of services: read from the environment when a request is sent, and kept out of everything that is shown.

    key = read_key('API_KEY')
    hide_key('401: Bearer secret-key is not valid', key)        '401: Bearer [key] is not valid'

A key in a notebook, a log, a cache or an error message is a key that must be replaced. So the program is given the NAME
of an environment variable, the value is never an attribute of an object, and texts of a service, which may repeat the
request's headers in an error, pass through `hide_key` before anything else sees them.

Sharp edge: a key that has fewer than `MIN_LENGTH` characters can occur in ordinary text, which would then be
changed, and is refused. Local servers that check no key need none: key_variable=None.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import urllib.parse

from mechjax.errors import ProviderError

MIN_LENGTH = 8
_NAME = re.compile(r'[A-Z_][A-Z0-9_]{0,63}')
_KEY = re.compile(r'[\x21-\x7e]+')


def check_key_variable(name: str | None) -> None:
  """Raises a ProviderError unless this is the name of an environment variable; it does not show it: it may be a key."""
  if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
    raise ProviderError(
      'key_variable is not the name of an environment variable (it is not shown, since it may be a key)',
      hint="capital letters, digits and underscores, such as key_variable='API_KEY'; None for no key",
    )


def read_key(name: str | None) -> str | None:
  """Value of an environment variable; None without a name.

  Raises:
    ProviderError: the variable is not set, or its value cannot be a key.
  """
  if name is None:
    return None
  key = os.environ.get(name, '')
  if not key:
    raise ProviderError(
      f'the environment variable {name} is not set', hint=f'export {name}=..., then start again'
    )
  if not _KEY.fullmatch(key) or len(key) < MIN_LENGTH:
    raise ProviderError(
      f'the value of the environment variable {name} cannot be a key',
      cause=f'blanks, control characters or letters beyond ASCII in it, or fewer than {MIN_LENGTH} characters',
      hint='key_variable=None for a service that checks no key',
    )
  return key


def hide_key(text: str, key: str | None) -> str:
  """The text with [key] in place of the key, as it is or as JSON, URLs, HTML and base64 write it."""
  for form in _forms(key) if key else ():
    text = text.replace(form, '[key]')
  return text


def shows_key(text: str, key: str | None) -> bool:
  """Whether a text contains the key, in any of these forms."""
  return key is not None and any(form in text for form in _forms(key))


def _forms(key: str) -> list[str]:
  quoted = json.dumps(key)[1:-1]
  encoded = [base64.b64encode(text.encode()).decode() for text in (key, f'Bearer {key}')]
  return [
    key,
    quoted,
    quoted.replace('/', '\\/'),
    repr(key)[1:-1],
    urllib.parse.quote(key, safe=''),
    html.escape(key),
    *encoded,
  ]
