"""Generation: one token after the other, with all reads and interventions of a harvest.

Many questions are about the behaviour of a model over several steps: does steering change the text, when does a
feature fire, does a head that was ablated in one forward pass matter for the answer. So an intervention written for
one pass works in a generation unchanged:

    edit = {'resid_post.7': lambda x: x + direction}
    logits = harvest.plant(forward)(edit, params, tokens)                  one pass
    out = generate(model, params, prompts, 40, plants=edit, sites='mlp_post.7')

The guarantee, for greedy choices: token i of a row is `argmax(plant(forward)(edit, params, text)[:, -1])`, where `text`
is the row's prompt and its tokens before i, without padding; if all prompts have one length, all rows together. A
function always sees the whole batch: one whose value depends on the number of rows, such as noise of the shape of `x`,
gives the tokens of this batch, and not those of each row alone.

A function that is proven to act on each position by itself (`positionwise`) is run with a cache: the prompts in one
pass and every further token in a step of width 1. With any other function, such as `x.at[:, 3].set(v)`, `x - x.mean(1)`
or a function at 'k', 'v', 'attn_scores' and 'attn_probs', every step is a pass over the whole text so far, and the
function sees exactly its columns (`functions`). For SmolLM2-135M on two cores such a step takes 1.9 times the processor
time of one with the cache for texts of up to 16 tokens, and grows with the text as a pass does.

A function of positions, such as the last token of the prompt or everything that was generated, is planted as
`Positioned`, and runs with the cache:

    def steer_the_answer(x, positions, prompt_length):
      return jnp.where((positions >= prompt_length[:, None])[..., None], x + direction, x)

    out = generate(model, params, prompts, 40, plants={'resid_post.7': Positioned(steer_the_answer)})

Keys and values: a function at 'k' or 'v' sees those of the whole text so far at every step, as they are without it.
What it returns is used in that step, and nothing planted is written to a cache. This holds for our own decoder and for
all upstream codes.

`Steps` is a generation with Python between the steps and a loop over the sites within each (`stepping`), and `stream`
yields each token as soon as it is chosen.

Programs are compiled once for a bucket of lengths and a choice of plants and sites; arrays that a function closes over
are arguments. Prompts of different lengths are aligned on the right in `Generation.prompt_mask` and in what is read, so
that `value[:, -1]` is the last token of every row; `Generation.positions` are the positions of all columns.

`Model` consists of functions, and params are arrays: generation does not depend on the library of the model.

Letters: B prompts, T columns of the longest prompt, V vocabulary, n tokens generated.

Sharp edges:
  - Where prompts differ in length, a function must be proven to keep rows apart, because they have no common columns.
  - A plant that is an array fits texts of one length, so only one token can be generated with it.
  - A function is staged for every length of text that occurs, about a millisecond each.
"""

from __future__ import annotations

from mechjax.generate.loop import generate, stream
from mechjax.generate.model import Model
from mechjax.generate.results import Generation
from mechjax.generate.sampling import Sampling
from mechjax.generate.stepping import GenerationStep, Steps
from mechjax.harvest import Positioned

__all__ = [
  'Generation',
  'GenerationStep',
  'Model',
  'Positioned',
  'Sampling',
  'Steps',
  'generate',
  'stream',
]
