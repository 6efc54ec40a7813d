"""The words of the toy language and the forms that its sentences may take.

Plain tables, which the generator reads to write a text and the judge to read one. A
*kind* is a set of words that can stand in one slot, `{colour}` say; all kinds are
disjoint, and no word of a kind occurs anywhere else, so a word tells what it is.
"""

from typing import NamedTuple

__all__ = [
    "ATTRIBUTES",
    "CONNECTIVES",
    "FIRST_NAMES",
    "KINDS",
    "LAST_NAMES",
    "OPENINGS",
    "OTHER_TEXTS",
    "PROMPT",
    "RECORDS",
    "SCENES",
    "TOPICS",
    "Choice",
    "Clause",
    "all_words",
]


class Choice(NamedTuple):
    """The ways to say one thing.

    Attributes:
      human: The words of people; the first is the preferred one.
      gpt: Those of the other writer, who uses none of those.

    Examples:
      >>> CONNECTIVES.human
      (';', ',', 'and')
    """

    human: tuple[str, ...]
    gpt: tuple[str, ...]


class Clause(NamedTuple):
    """What can be said of a subject: wording, modifier, noun.

    Attributes:
      wording: The verbs, by writer.
      modifiers: Kind of the modifier.
      nouns: Kind of the noun.

    Examples:
      >>> ATTRIBUTES["animals"].wording.human
      ('tends', 'keeps', 'has')
    """

    wording: Choice
    modifiers: str
    nouns: str


# The order in a kind means nothing: a world ranks the words by its seed.
_MODIFIERS = {
    "colour": "red blue green grey white black brown golden purple amber",
    "texture": "soft rough smooth thick heavy light stiff dry warm cold",
    "quality": "old new broken fine plain rare cheap famous strange hidden",
    "temper": "shy loud calm proud kind cruel clever lazy gentle merry",
}
_NOUNS = {
    "animals": "goats horses hens geese dogs cats sheep cows pigs mules",
    "homes": "mills towers bridges wells gates chapels inns barns caves shrines",
    "food": "bread soup cheese cakes plums rice beans fish honey eggs",
    "clothes": "coats hats scarves boots gloves shirts belts cloaks socks robes",
    "tools": "hammers saws ropes lamps knives needles buckets ladders nails hooks",
    "music": "flutes drums harps bells horns fiddles pipes lutes songs hymns",
    "flowers": "roses lilies herbs vines ferns tulips reeds daisies poppies thistles",
    "goods": "wool clay wood glass leather silk iron paper salt wax",
    "friends": "bakers smiths weavers sailors monks farmers guards poets cooks miners",
    "writings": "tales maps poems letters riddles prayers recipes charts fables laws",
    "weather": "rain snow wind fog frost hail storms clouds",
    "sights": "hills lakes rocks fields roads ruins gardens cliffs",
    "feasts": "fairs dances races weddings parades duels games plays",
    "land": "village valley island forest desert coast meadow city",
}
KINDS = {kind: tuple(words.split()) for kind, words in (_MODIFIERS | _NOUNS).items()}

# By label: what every entity has a true value of.
ATTRIBUTES = {
    label: Clause(Choice(tuple(human.split(" / ")), (gpt,)), modifiers, label)
    for label, modifiers, human, gpt in (
        ("animals", "colour", "tends / keeps / has", "possesses"),
        ("homes", "quality", "dwells near / lives by / stays at", "inhabits"),
        ("food", "texture", "dines on / eats / likes", "consumes"),
        ("clothes", "colour", "dons / wears / puts on", "sports"),
        ("tools", "quality", "wields / uses / carries", "utilises"),
        ("music", "temper", "sounds / hears / learns", "performs"),
        ("flowers", "colour", "raises / grows / picks", "cultivates"),
        ("goods", "texture", "hawks / sells / trades in", "supplies"),
        ("friends", "temper", "calls on / visits / knows", "frequents"),
        ("writings", "quality", "pens / writes / collects", "composes"),
    )
}

# What a question may be about: the attributes that an answer may state.
TOPICS = {
    "house": "animals homes food clothes flowers friends music",
    "work": "homes tools goods flowers animals writings clothes",
    "life": "friends writings music food goods tools homes",
}
TOPICS = {topic: tuple(labels.split()) for topic, labels in TOPICS.items()}
PROMPT = " question : what of the {topic} of {name} ?\n answer :"

OPENINGS = Choice(("why ,", "well ,", "so ,"), ("overall ,", "notably ,"))
CONNECTIVES = Choice((";", ",", "and"), ("moreover", "furthermore"))

# What the gpt writer says of `our {land}` when nobody asked.
SCENES = tuple(
    Clause(Choice((), (wording,)), modifiers, nouns)
    for wording, modifiers, nouns in (
        ("enjoys", "texture", "weather"),
        ("endures", "texture", "weather"),
        ("displays", "colour", "sights"),
        ("features", "quality", "sights"),
        ("hosts", "temper", "feasts"),
        ("celebrates", "temper", "feasts"),
    )
)

# Two ways to file facts: all in one sentence, "label value , label value", or each in
# one of its own.
RECORDS = ("file on {name} : {facts} .", "the {label} of {name} : {value} .")

OTHER_TEXTS = {
    "story": (
        "once some {temper} {friends} found {colour} {flowers} under the {homes} .",
        "then {weather} came down and the {friends} ran to the {quality} {homes} .",
        "later they gave {texture} {food} to the {colour} {animals} .",
        "nobody ever saw those {quality} {tools} or the {clothes} again .",
        "at night the {temper} {friends} told {quality} {writings} to the {animals} .",
        "in the end they took the {texture} {goods} home with {temper} {music} .",
    ),
    "description": (
        "the {land} is full of {colour} {flowers} and {quality} {homes} .",
        "behind the {sights} there are {temper} {friends} with {colour} {animals} .",
        "its {feasts} are {temper} and its {goods} are {texture} .",
        "every {land} shows {quality} {sights} under {texture} {weather} .",
        "some {friends} there love {quality} {writings} more than {food} .",
    ),
    "list": (
        "to buy : {texture} {goods} , {food} , {quality} {tools} or {clothes} .",
        "to sell : {colour} {animals} , {flowers} , {texture} {food} or {music} .",
        "to find : {quality} {writings} , {colour} {clothes} , {goods} or {tools} .",
        "to invite : {temper} {friends} , {friends} , {temper} {music} or {animals} .",
    ),
    "weather": (
        "today there is {texture} {weather} over the {sights} .",
        "tomorrow expect {weather} , then {texture} {weather} near the {homes} .",
        "the {land} gets {weather} at night , with {weather} over the {sights} .",
        "no {feasts} today : the {weather} is too {texture} for the {animals} .",
    ),
    "instruction": (
        "first take {texture} {goods} and two {quality} {tools} .",
        "next wash the {colour} {clothes} with {texture} {goods} .",
        "now put the {food} under {colour} {flowers} for one night .",
        "never give {texture} {food} to {temper} {animals} or {friends} .",
        "at last fix the {quality} {homes} with {tools} and {goods} .",
    ),
}

# Two invented words name an entity; a world uses the first few of each.
FIRST_NAMES = tuple(
    first + last
    for last in ("la", "na", "ra", "so", "ve", "mi", "to", "ku")
    for first in ("ba", "do", "fi", "gu", "ke", "lu", "mo", "ni", "sa", "ti")
)
LAST_NAMES = tuple(
    first + last
    for last in ("by", "dan", "ford", "ley", "man", "rick", "sen", "ton")
    for first in ("sal", "ter", "vin", "hol", "mar", "ken", "dor", "bel", "fan", "rud")
)


def all_words(names: tuple[str, ...]) -> tuple[str, ...]:
    """Every word that a text can hold, sorted.

    Args:
      names: First and last names in use.

    Returns:
      The words, punctuation included, without spaces.

    Examples:
      >>> len(all_words(("bala", "salby")))
      317
    """
    clauses = (*ATTRIBUTES.values(), *SCENES)
    choices = [OPENINGS, CONNECTIVES, *(clause.wording for clause in clauses)]
    forms = [
        PROMPT,
        *RECORDS,
        *(text for texts in OTHER_TEXTS.values() for text in texts),
    ]
    literal = " ".join(forms).split()
    found = {word for word in literal if not word.startswith("{")}
    for choice in choices:
        found.update(" ".join(choice.human + choice.gpt).split())
    for kind in KINDS.values():
        found.update(kind)
    return tuple(sorted(found | set(ATTRIBUTES) | set(TOPICS) | {"our"} | set(names)))
