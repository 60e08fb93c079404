"""Features: where each latent of a dictionary is active, what it adds to the logits, and its nearest neighbours.

A latent is interpreted from the text on which it is active, and not only from its strongest activations: many a latent
that looks clear in its top examples means something else where it is weakly active. So the record of each latent has

    histogram             how often it is active, and how strongly; its density, its quantiles
    top                   the contexts of its highest peaks
    drawn                 contexts drawn at random from every interval of its activations, an octave each
    promoted, suppressed  the tokens whose logits its decoder direction changes most
    decoder_near, encoder_near    the latents with the nearest directions, with the cosine

    features = collect(activations, sae, params, batches, unembed=unembed)
    features.save('features.npz')
    viz.dashboard.dashboard(features, pieces, about)

`activations(tokens [B, T]) -> [B, T, D]` is the model up to the site; `unembed(directions [k, E]) -> logits [k, V]`
maps the output site of the dictionary to the logits. Any number of tokens streams through once.

Files: `selection` reduces a batch on the device; `keeping` holds the best examples so far; `collecting` has the loop;
`directions` needs no text; `record` is the result, and its .npz. Letters in shapes, besides those of `mechjax.sae`:
L selected latents, n examples, W tokens of a window, T tokens of a sequence.
"""

from mechjax.sae.features.collecting import collect
from mechjax.sae.features.directions import Ranked, logit_effects, nearest
from mechjax.sae.features.record import EDGES, Examples, Features, load
from mechjax.sae.features.selection import FeatureSettings

__all__ = [
  'EDGES',
  'Examples',
  'FeatureSettings',
  'Features',
  'Ranked',
  'collect',
  'load',
  'logit_effects',
  'nearest',
]
