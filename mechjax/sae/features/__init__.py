"""What the latents of a dictionary mean: where each is active, what it adds to the logits, and who is like it.

A latent is read from the text on which it is active, and from more than its strongest moments: many a latent that
looks clear in its top examples says something else wherever it is weak. So of each latent are kept

    histogram             how often it is active, and how strongly; its density, its quantiles
    top                   the contexts of its highest peaks
    drawn                 contexts drawn at random from every interval of its activations, an octave each
    promoted, suppressed  the tokens whose logits its decoder direction moves most
    decoder_near, encoder_near    the latents whose directions are most like its own, with the cosine

    features = collect(activations, sae, params, batches, unembed=unembed)
    features.save('features.npz')
    viz.dashboard.dashboard(features, pieces, about)

`activations(tokens [B, T]) -> [B, T, D]` is the model up to the site; `unembed(directions [k, E]) -> logits [k, V]`
the way from the site that the dictionary says to the logits. Any number of tokens streams through once.

Files: `selection` what the device makes of a batch; `keeping` the best so far; `collecting` the loop; `directions` what
needs no text; `record` the result, and its .npz. Letters in shapes, beside those of `mechjax.sae`: L latents looked at,
n examples, W tokens of a window, T tokens of a sequence.
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
