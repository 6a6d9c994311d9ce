"""Every word the build teaches: ImageNet names with synonyms and hypernyms, and the labels of the training sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# The text side is trained on averages of random subsets of these, so that no single wording matters.
TEMPLATES = (
    "a photo of a {}",
    "{}",
    "a {}",
    "a picture of the {}",
    "a close-up photo of a {}",
    "a photo of the {}",
    "an image of {}",
    "there is a {} in the scene",
)

# Labels of the training sets whose folder name is not how people say it, with synonyms and hypernyms.
LABELS: dict[str, str] = {
    "airplane": "airplane; aeroplane; plane | aircraft, vehicle",
    "ant": "ant | insect, bug, animal",
    "barrel": "barrel; cask | container",
    "bass fish": "bass; bass fish | fish, animal",
    "beaver": "beaver | rodent, mammal, animal",
    "binocular": "binoculars | optical instrument",
    "brain": "brain; human brain | organ, anatomy",
    "brontosaurus": "brontosaurus; dinosaur | prehistoric animal, animal, drawing",
    "butterfly": "butterfly | insect, animal",
    "camera": "camera | electronics",
    "cannon": "cannon | weapon",
    "ceiling fan": "ceiling fan; fan | appliance",
    "chandelier": "chandelier | lamp, light",
    "cougar": "cougar; puma | wild cat, feline, animal",
    "crab": "crab | crustacean, animal",
    "crayfish": "crayfish | crustacean, animal",
    "crocodile": "crocodile | reptile, animal",
    "dalmatian": "dalmatian | dog, pet, animal",
    "dragonfly": "dragonfly | insect, animal",
    "electric guitar": "electric guitar; guitar | musical instrument",
    "euphonium": "euphonium; tuba | brass instrument, musical instrument",
    "ferry": "ferry | ship, boat, vehicle",
    "garfield": "Garfield; cartoon cat | cartoon, drawing, comic",
    "gerenuk": "gerenuk; antelope | wildlife, animal",
    "gramophone": "gramophone; record player | music",
    "grand piano": "grand piano; piano | musical instrument",
    "hawksbill turtle": "hawksbill turtle; sea turtle; turtle | reptile, animal",
    "headphone": "headphones; headset | electronics",
    "hedgehog": "hedgehog | mammal, animal",
    "helicopter": "helicopter; chopper | aircraft, vehicle",
    "inline skate": "inline skate; roller skate | footwear, sports equipment",
    "kangaroo": "kangaroo | marsupial, animal",
    "ketch sailing boat": "sailing boat; ketch; sailboat | boat, ship, vehicle",
    "laptop": "laptop; notebook computer | computer, electronics",
    "lobster": "lobster | crustacean, animal",
    "mandolin": "mandolin | stringed instrument, musical instrument",
    "mayfly": "mayfly | insect, animal",
    "menorah": "menorah; candelabrum | candle",
    "metronome": "metronome | measuring instrument, music",
    "minaret": "minaret | tower, mosque, building, architecture",
    "motorbike": "motorbike; motorcycle | vehicle",
    "nautilus": "nautilus | mollusc, sea creature, animal",
    "octopus": "octopus | mollusc, sea creature, animal",
    "okapi": "okapi | mammal, wildlife, animal",
    "pizza": "pizza | food, meal",
    "revolver": "revolver; pistol; handgun | gun, weapon",
    "rhino": "rhino; rhinoceros | mammal, wildlife, animal",
    "saxophone": "saxophone | wind instrument, musical instrument",
    "scissors": "scissors | tool, stationery",
    "scorpion": "scorpion | arachnid, animal",
    "sea horse": "sea horse; seahorse | fish, sea creature, animal",
    "snoopy": "Snoopy; cartoon dog | cartoon, drawing, comic",
    "stapler": "stapler | stationery, office supplies",
    "starfish": "starfish | sea creature, animal",
    "stop sign": "stop sign; traffic sign; road sign | sign",
    "strawberry": "strawberry | fruit, berry, food",
    "sunflower": "sunflower | flower, plant",
    "tick arachnid": "tick | arachnid, bug, animal",
    "umbrella": "umbrella; parasol",
    "watch": "watch; wristwatch | timepiece, clock",
    "water lily": "water lily; lotus | flower, plant",
    "wheelchair": "wheelchair | chair, vehicle",
    "wrench": "wrench; spanner | tool",
    "yin yang symbol": "yin yang symbol; symbol; sign; logo | icon, drawing",
    "anjou pear": "anjou pear; pear | fruit, food",
    "asparagus": "asparagus | vegetable, food",
    "aubergine": "aubergine; eggplant | vegetable, food",
    "avocado": "avocado | fruit, vegetable, food",
    "banana": "banana | fruit, food",
    "beef tomato": "tomato; beef tomato | vegetable, food",
    "brown cap mushroom": "mushroom; brown mushroom | vegetable, food",
    "cabbage": "cabbage | vegetable, food",
    "cantaloupe melon": "cantaloupe; melon | fruit, food",
    "carrots": "carrot; carrots | vegetable, food",
    "conference pear": "conference pear; pear | fruit, food",
    "cucumber": "cucumber | vegetable, food",
    "floury potato": "potato; potatoes | vegetable, food",
    "galia melon": "galia melon; melon | fruit, food",
    "garlic": "garlic | vegetable, food",
    "ginger": "ginger root; ginger | spice, vegetable, food",
    "golden delicious apple": "golden delicious apple; yellow apple; apple | fruit, food",
    "granny smith apple": "granny smith apple; green apple; apple | fruit, food",
    "green bell pepper": "green bell pepper; bell pepper; pepper | vegetable, food",
    "honeydew melon": "honeydew melon; melon | fruit, food",
    "kaiser pear": "kaiser pear; pear | fruit, food",
    "kiwi": "kiwi fruit; kiwi | fruit, food",
    "leek": "leek | vegetable, food",
    "lemon": "lemon | citrus fruit, fruit, food",
    "lime": "lime; lime fruit | citrus fruit, fruit, food",
    "mango": "mango | fruit, food",
    "nectarine": "nectarine | fruit, food",
    "orange": "orange; orange fruit | citrus fruit, fruit, food",
    "orange bell pepper": "orange bell pepper; bell pepper; pepper | vegetable, food",
    "papaya": "papaya | fruit, food",
    "passion fruit": "passion fruit | fruit, food",
    "peach": "peach | fruit, food",
    "pineapple": "pineapple | fruit, food",
    "pink lady apple": "pink lady apple; apple; red apple | fruit, food",
    "plum": "plum | fruit, food",
    "pomegranate": "pomegranate | fruit, food",
    "red beet": "beetroot; red beet; beet | vegetable, food",
    "red bell pepper": "red bell pepper; bell pepper; pepper | vegetable, food",
    "red delicious apple": "red delicious apple; red apple; apple | fruit, food",
    "red grapefruit": "grapefruit; red grapefruit | citrus fruit, fruit, food",
    "regular tomato": "tomato; tomatoes | vegetable, food",
    "royal gala apple": "royal gala apple; red apple; apple | fruit, food",
    "satsumas": "satsuma; mandarin; tangerine | citrus fruit, fruit, food",
    "solid potato": "potato; potatoes | vegetable, food",
    "sweet potato": "sweet potato | vegetable, food",
    "vine tomato": "vine tomatoes; tomato; cherry tomato | vegetable, food",
    "watermelon": "watermelon; melon | fruit, food",
    "yellow bell pepper": "yellow bell pepper; bell pepper; pepper | vegetable, food",
    "yellow onion": "onion; yellow onion | vegetable, food",
    "zucchini": "zucchini; courgette | vegetable, food",
    "cardboard waste": "cardboard; cardboard waste; cardboard box | box, packaging, waste",
    "general trash": "trash; garbage; rubbish; litter | waste",
    "glass waste": "glass bottle; glass jar; glass waste | bottle, container, waste",
    "metal waste": "metal can; tin can; metal waste | can, container, waste",
    "paper waste": "paper; sheet of paper; paper waste | document, waste",
    "plastic waste": "plastic bottle; plastic container; plastic waste | bottle, container, waste",
}


@dataclass(frozen=True)
class Concept:
    """What one label may be called: ``names`` (it and synonyms, the first is the usual one) and ``kinds``."""

    names: tuple[str, ...]
    kinds: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        return self.names + self.kinds


def parse(line: str) -> Concept:
    """Read ``name; synonym | kind, kind``."""
    names, _, kinds = line.partition("|")
    return Concept(
        tuple(word.strip() for word in names.split(";") if word.strip()),
        tuple(word.strip() for word in kinds.split(",") if word.strip()),
    )


def imagenet_concepts() -> list[Concept]:
    """The 1000 ImageNet classes in the classifier's order."""
    lines = (Path(__file__).with_name("imagenet.txt")).read_text(encoding="utf-8").splitlines()
    concepts = [parse(line) for line in lines]
    if len(concepts) != 1000:
        raise SystemExit(f"imagenet.txt holds {len(concepts)} classes, not 1000")
    return concepts


def label_concept(label: str) -> Concept:
    """The concept of a training label; a label that is not listed names itself."""
    return parse(LABELS.get(label, label))
