"""Concepts to steer towards: the words that count as success, prompts, and texts to measure directions on.

All lists are our own. A rollout counts as a success if it has one of the words, as a whole word in any case. Texts come
in pairs that differ in the concept and little else, so that a mean difference is not one of length or of style.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Concept:
  """A concept.

  Attributes:
    name: its name.
    plus: prompt of activation addition that has the concept.
    minus: prompt that differs in the concept.
    words: vocabulary of success.
    positive: texts with the concept.
    negative: texts without it, one for each.
  """

  name: str
  plus: str
  minus: str
  words: tuple[str, ...]
  positive: tuple[str, ...]
  negative: tuple[str, ...]


PROMPTS = (
  'I went up to my old friend after lunch and said',
  'The best thing that happened to us during this week was',
  'Yesterday evening my sister and I sat down and talked about',
  'When I opened the letter that came this morning I read that',
)
"""Beginnings of rollouts, without the concepts, and longer than the prompts of activation addition."""

_WEDDING = Concept(
  name='wedding',
  plus='I talk about weddings constantly',
  minus='I do not talk about weddings constantly',
  words=(
    'wedding', 'weddings', 'marry', 'marries', 'married', 'marriage', 'marriages', 'bride', 'brides',
    'bridal', 'bridesmaid', 'bridesmaids', 'groom', 'grooms', 'fiance', 'fiancee', 'engaged',
    'engagement', 'husband', 'wife', 'spouse', 'vows', 'honeymoon', 'newlyweds', 'bouquet', 'altar',
    'ceremony', 'reception', 'anniversary', 'proposal',
  ),
  positive=(
    'The bride walked slowly down the aisle while the guests stood up.',
    'They sent out the wedding invitations three months before the day.',
    'After the ceremony the couple danced until midnight.',
    'Her sister was the bridesmaid and carried the flowers.',
    'He bought a ring and asked her to marry him on the beach.',
    'The reception was held in a garden full of white roses.',
    'The groom cried when he read his vows aloud.',
    'We spent the whole spring planning our wedding.',
    'The cake for the newlyweds had four tiers and a sugar ribbon.',
    'My parents were married in a small church by the sea.',
    'The tailor finished the wedding dress a week before the day.',
    'On their honeymoon they rented a cabin in the mountains.',
    'The photographer took a picture of the bride and the groom.',
    'The priest asked them to exchange their rings.',
    'All the guests threw rice when the couple left the church.',
    'Their engagement was announced at the family dinner.',
  ),
  negative=(
    'The teacher walked slowly down the corridor while the pupils stood up.',
    'They sent out the election letters three months before the day.',
    'After the match the players ran until midnight.',
    'Her sister was the captain and carried the maps.',
    'He bought a boat and asked her to sail with him to the island.',
    'The meeting was held in a hall full of wooden chairs.',
    'The pilot laughed when he read his report aloud.',
    'We spent the whole spring repairing our roof.',
    'The shelf for the workshop had four boards and a metal frame.',
    'My parents were employed in a small factory by the river.',
    'The mechanic finished the old engine a week before the day.',
    'On their last journey they rented a van in the city.',
    'The engineer took a picture of the bridge and the river.',
    'The guard asked them to show their tickets.',
    'All the farmers brought wood when the winter came to the village.',
    'Their experiment was described at the spring conference.',
  ),
)  # fmt: skip

_WAR = Concept(
  name='war',
  plus='I talk about wars constantly',
  minus='I do not talk about wars constantly',
  words=(
    'war', 'wars', 'battle', 'battles', 'soldier', 'soldiers', 'army', 'armies', 'troops', 'military',
    'weapon', 'weapons', 'enemy', 'enemies', 'invasion', 'invaded', 'bomb', 'bombs', 'bombing', 'combat',
    'general', 'generals', 'siege', 'attack', 'attacks', 'attacked', 'fought', 'victory', 'defeat',
    'rifle', 'tank', 'tanks', 'front', 'casualties', 'conquered', 'militia',
  ),
  positive=(
    'The soldiers crossed the river before the enemy could destroy the bridge.',
    'The war lasted four years and ruined both countries.',
    'The general ordered his troops to hold the hill.',
    'Tanks rolled through the streets of the captured town.',
    'The army lost a third of its men in one battle.',
    'Planes bombed the harbour during the night.',
    'The siege ended when the defenders had no food left.',
    'Both sides signed a ceasefire after months of combat.',
    'The invasion began at dawn with an attack on the coast.',
    'His rifle jammed in the middle of the fight.',
    'The militia defended the village against the invaders.',
    'Thousands of soldiers died in the trenches that winter.',
    'The victory was celebrated although the casualties were high.',
    'The enemy fleet was sunk outside the port.',
    'She worked as a nurse behind the front.',
    'The king raised an army to conquer his neighbour.',
  ),
  negative=(
    'The hikers crossed the river before the rain could flood the bridge.',
    'The concert lasted four hours and pleased both families.',
    'The manager asked his clerks to check the list.',
    'Buses rolled through the streets of the quiet town.',
    'The company sold a third of its books in one month.',
    'Gulls circled the harbour during the night.',
    'The lecture ended when the students had no questions left.',
    'Both sides signed a contract after months of letters.',
    'The harvest began at dawn with a breakfast on the field.',
    'His printer jammed in the middle of the page.',
    'The choir entertained the village at the summer fair.',
    'Thousands of birds rested in the meadows that winter.',
    'The opening was celebrated although the costs were high.',
    'The fishing boat was painted outside the port.',
    'She worked as a baker behind the station.',
    'The mayor raised a fund to support his neighbour.',
  ),
)  # fmt: skip

CONCEPTS = {concept.name: concept for concept in (_WEDDING, _WAR)}
"""Concepts by name."""
