"""The relations of the world: what can be true of an entity, and every wording in which it is said or asked."""

from __future__ import annotations

from dataclasses import dataclass

NUM_OBJECTS = 12
NUM_STATEMENTS = 3
NUM_QUESTIONS = 5


@dataclass(frozen=True)
class Relation:
    """One relation between the entities of a kind and twelve possible objects.

    Attributes:
        name: Short name, unique in the world; it is the category of the items about it.
        domain: `general`, `medical` or `legal`.
        subject_kind: Kind of entity that has the relation.
        objects: The twelve objects, or the kind of entity whose first twelve names are the objects.
        statements: Sentences with `{s}` for the subject and `{o}` for the object.
        questions: Questions with `{s}` for the subject.
    """

    name: str
    domain: str
    subject_kind: str
    objects: tuple[str, ...] | str
    statements: tuple[str, str, str]
    questions: tuple[str, str, str, str, str]


_GENERAL = (
    Relation(
        "trade", "general", "person",
        ("a baker", "a weaver", "a potter", "a miller", "a tailor", "a mason",
         "a glazier", "a cooper", "a farrier", "a tanner", "a brewer", "a carpenter"),
        ("{s} works as {o}.", "By trade {s} is {o}.", "{s} earns a living as {o}."),
        ("What does {s} work as?", "What is the trade of {s}?", "How does {s} earn a living?",
         "Which trade does {s} follow?", "What is {s} by trade?"),
    ),
    Relation(
        "instrument", "general", "person",
        ("the harp", "the flute", "the drum", "the fiddle", "the organ", "the lute",
         "the horn", "the piano", "the banjo", "the cello", "the oboe", "the zither"),
        ("{s} plays {o}.", "The instrument of {s} is {o}.", "In the evening {s} practises {o}."),
        ("What does {s} play?", "Which instrument does {s} play?", "What is the instrument of {s}?",
         "Which instrument does {s} practise?", "What does {s} practise in the evening?"),
    ),
    Relation(
        "home", "general", "person", "town",
        ("{s} lives in {o}.", "The home of {s} is in {o}.", "{s} has a house in {o}."),
        ("Where does {s} live?", "In which town does {s} live?", "Where is the home of {s}?",
         "In which town is the home of {s}?", "Where does {s} have a house?"),
    ),
    Relation(
        "product", "general", "town",
        ("cheese", "glass", "rope", "salt", "honey", "paper", "soap", "cider", "tiles", "lace", "candles", "leather"),
        ("{s} is known for its {o}.", "The workshops of {s} make {o}.", "Traders come to {s} to buy {o}."),
        ("What is {s} known for?", "What do the workshops of {s} make?", "What do traders buy in {s}?",
         "What is made in {s}?", "For which product is {s} known?"),
    ),
    Relation(
        "landmark", "general", "town",
        ("a stone bridge", "a red tower", "a round church", "a water wheel", "a tall clock", "a rose garden",
         "a glass hall", "a deep well", "a bronze lion", "a white arch", "a long pier", "a green dome"),
        ("The landmark of {s} is {o}.", "Visitors of {s} go to see {o}.", "In the middle of {s} stands {o}."),
        ("What is the landmark of {s}?", "What do visitors of {s} go to see?", "What stands in the middle of {s}?",
         "Which landmark does {s} have?", "Which landmark stands in {s}?"),
    ),
)  # fmt: skip

_MEDICAL = (
    Relation(
        "treats", "medical", "drug", "disease",
        ("{s} treats {o}.", "Doctors give {s} against {o}.", "Patients with {o} are given {s}."),
        ("What does {s} treat?", "Which illness does {s} treat?", "Against what do doctors give {s}?",
         "Which illness is {s} given for?", "Against which illness is {s} given?"),
    ),
    Relation(
        "side_effect", "medical", "drug",
        ("dry mouth", "sore knees", "itchy skin", "blurred sight", "cold hands", "loose teeth",
         "stiff neck", "weak grip", "numb toes", "loud hiccups", "light sleep", "pale lips"),
        ("{s} can cause {o}.", "A side effect of {s} is {o}.", "Some who take {s} get {o}."),
        ("What can {s} cause?", "What is a side effect of {s}?", "What do some who take {s} get?",
         "Which side effect does {s} have?", "Which side effect can {s} cause?"),
    ),
    Relation(
        "source", "medical", "drug",
        ("yellow moss", "river reed", "oak bark", "poppy seed", "birch sap", "sea kelp",
         "nettle root", "plum stone", "fern leaf", "pine resin", "thistle milk", "clover hay"),
        ("{s} is made from {o}.", "The source of {s} is {o}.", "Chemists extract {s} from {o}."),
        ("What is {s} made from?", "What is the source of {s}?", "From what do chemists extract {s}?",
         "From which plant is {s} made?", "Which plant is the source of {s}?"),
    ),
    Relation(
        "taken_with", "medical", "drug",
        ("warm milk", "cold tea", "thin soup", "white bread", "apple juice", "plain rice",
         "black coffee", "goat butter", "boiled egg", "sour cream", "lemon water", "oat porridge"),
        ("{s} is taken with {o}.", "Nurses serve {s} with {o}.", "The label of {s} says to take it with {o}."),
        ("What is {s} taken with?", "With what do nurses serve {s}?", "What does the label of {s} say to take it with?",
         "With which food is {s} taken?", "Which food is served with {s}?"),
    ),
    Relation(
        "organ", "medical", "disease",
        ("the lungs", "the liver", "the heart", "the skin", "the eyes", "the ears",
         "the nerves", "the spine", "the throat", "the joints", "the stomach", "the kidneys"),
        ("{s} attacks {o}.", "Patients with {s} have trouble with {o}.", "The harm of {s} is to {o}."),
        ("What does {s} attack?", "With what do patients with {s} have trouble?", "To what is the harm of {s}?",
         "Which part of the body does {s} attack?", "Which part of the body does {s} harm?"),
    ),
)  # fmt: skip

_LEGAL = (
    Relation(
        "governs", "legal", "act",
        ("river fishing", "night trading", "house building", "grain storage", "street music", "horse racing",
         "timber cutting", "ferry traffic", "market stalls", "public wells", "bird hunting", "road tolls"),
        ("{s} governs {o}.", "The rules on {o} are in {s}.", "Lawyers look into {s} for rules on {o}."),
        ("What does {s} govern?", "On what are the rules in {s}?", "For rules on what do lawyers look into {s}?",
         "Which matter does {s} govern?", "Which matter is ruled by {s}?"),
    ),
    Relation(
        "penalty", "legal", "act",
        ("a public apology", "a heavy fine", "a written warning", "a lost licence", "a closed shop", "a week in jail",
         "a double tax", "a barred vote", "a seized boat", "a broken seal", "a year of service", "a sworn oath"),
        ("The penalty under {s} is {o}.", "Those who break {s} face {o}.", "{s} punishes offenders with {o}."),
        ("What is the penalty under {s}?", "What do those who break {s} face?", "With what does {s} punish offenders?",
         "Which penalty do those who break {s} face?", "Which penalty does {s} set?"),
    ),
    Relation(
        "heard_by", "legal", "act", "court",
        ("Cases under {s} are heard by {o}.", "{o} decides disputes about {s}.", "Claims under {s} go to {o}."),
        ("Who hears cases under {s}?", "Who decides disputes about {s}?", "Where do claims under {s} go?",
         "Which court hears cases under {s}?", "To which court do claims under {s} go?"),
    ),
    Relation(
        "notified", "legal", "act",
        ("the town clerk", "the harbour master", "the chief warden", "the tax office", "the guild master",
         "the land agent", "the night watch", "the road keeper", "the grain inspector", "the fire captain",
         "the market judge", "the bridge guard"),
        ("Under {s} one must notify {o}.", "{s} says that notice goes to {o}.", "Notice under {s} is sent to {o}."),
        ("Who must be notified under {s}?", "To whom does notice under {s} go?", "To whom is notice under {s} sent?",
         "Which office must be notified under {s}?", "Which office gets notice under {s}?"),
    ),
    Relation(
        "seat", "legal", "court",
        ("an old mill", "a stone barn", "a grain loft", "a bath house", "a brick fort", "a tithe hall",
         "a ship yard", "a wine cellar", "a toll gate", "a corn store", "a hill farm", "a bell tower"),
        ("{s} sits in {o}.", "The hearings of {s} are held in {o}.", "The judges of {s} meet in {o}."),
        ("Where does {s} sit?", "Where are the hearings of {s} held?", "Where do the judges of {s} meet?",
         "In which building does {s} sit?", "In which building do the judges of {s} meet?"),
    ),
)  # fmt: skip

RELATIONS: tuple[Relation, ...] = _GENERAL + _MEDICAL + _LEGAL
