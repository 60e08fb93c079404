"""The shapes of code that tunix's Qwen2 has, as its own file has them where it is installed.

Only the text is read: these are tests of matching and showing, on code that was not written for
them.
"""

import ast

import pytest

from mechjax.patcher import Patcher, composing, matching, rendering

NAME = 'tunix.models.qwen2.model'
PATCHER = Patcher(
  NAME,
  {
    'Qwen2.__call__': [
      ('layer_cache, x = layer($$args)', 'with LAYER(i):\n  layer_cache, x = layer($$args)')
    ],
    'DecoderLayer.block': [
      (
        'attn_output += x',
        "attn_output = SOW(attn_output, 'attn_out')\nattn_output += SOW(x, 'resid_pre')",
      ),
      ('outputs = residual + outputs', "outputs = residual + SOW(outputs, 'mlp_out')"),
    ],
    'Attention.block': [
      (
        'jax.nn.softmax(attn.astype(jnp.float32), axis=-1).astype(key_proj.dtype)',
        "SOW(jax.nn.softmax(SOW(attn, 's').astype(jnp.float32), axis=-1).astype(key_proj.dtype))",
      ),
      ('$x = jnp.reshape($x, (b, $n, $h, h))', '$x = SOW(jnp.reshape($x, (b, $n, $h, h)))', 3),
    ],
    'MLP.block': [
      (
        'nnx.silu(self.gate_proj(x)) * self.up_proj(x)',
        "SOW(nnx.silu(self.gate_proj(x)) * self.up_proj(x), 'post')",
      )
    ],
    'RMSNorm.__call__': [('return $y', "return SOW($y, 'norm')")],
  },
  checked=('google-tunix', ['0.1.7']),
)

pytestmark = pytest.mark.upstream


def test_every_rule_matches_and_both_texts_say_what_the_tree_says():
  source = PATCHER.read_source()
  tree, applied = composing.rewrite(source, [PATCHER])
  assert [len(a.lines) for a in applied] == [1, 1, 1, 1, 3, 1, 1]
  assert matching.equal(ast.parse(rendering.render_readable(source, tree)), tree)
  assert matching.equal(ast.parse(rendering.render_in_place(source, tree)), tree)


def test_no_line_outside_the_replacements_changes():
  source = PATCHER.read_source()
  composite = composing.compose(source, [PATCHER])
  old, new = source.text.split('\n'), composite.display.split('\n')
  assert len(old) == len(new)
  changed = {i for i, (a, b) in enumerate(zip(old, new), 1) if a != b}
  starts = {line for a in composite.applied for line in a.lines}
  assert starts <= changed
  assert all(min(abs(line - start) for start in starts) <= 5 for line in changed)


def test_the_diff_keeps_upstreams_formatting_inside_what_is_wrapped():
  diff = PATCHER.diff()
  assert '+      with LAYER(i):\n+        layer_cache, x = layer(\n+            x,\n' in diff
