"""The kinds of things in the demo world, with sentences and questions about them.

A `Kind` of thing has `Relation`s. In a sentence, `{s}` stands for the thing's name and any other
field for the value of that relation; a pronoun may replace `{s}` at the start of a sentence. In a
reply, `{v}` stands for the value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from loraqa.demo.names import Source

Sort = Literal["person", "place", "year", "date", "number", "thing"]


@dataclass(frozen=True)
class Relation:
    """A relation of a subject to a value, with questions about the value and replies to them.

    Attributes:
        sort: sort of the value.
        draw: draws a value.
        questions: templates of questions that the value answers.
        replies: templates of full sentences that answer the questions.
    """

    sort: Sort
    draw: Callable[[Source], str]
    questions: tuple[str, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of thing.

    Attributes:
        draw: draws a name.
        relations: name to relation.
        statements: templates of sentences that state one or more relations.
        pronoun: the pronoun for a thing of this kind.
    """

    draw: Callable[[Source], str]
    relations: dict[str, Relation]
    statements: tuple[str, ...]
    pronoun: str = "it"


# Replies that fit every question with an answer of the sort.
REPLIES: dict[Sort, tuple[str, ...]] = {
    "person": (
        "It was {v}, I think.",
        "That was {v}, if I remember.",
        "They say it was {v}, sir.",
        "I believe the name was {v}, yes.",
        "According to the text, {v}, nobody else.",
    ),
    "place": (
        "It was in {v}, I think.",
        "That was at {v}, if I remember.",
        "In {v}, as far as I know.",
        "I believe the place was {v}, yes.",
        "According to the text, {v}, nowhere else.",
    ),
    "year": (
        "It was in {v}, I think.",
        "That was in {v}, if I remember.",
        "In {v}, as far as I know.",
        "I believe the year was {v}, yes.",
        "According to the text, {v}, not later.",
    ),
    "date": (
        "It was on {v}, I think.",
        "That was on {v}, if I remember.",
        "On {v}, as far as I know.",
        "I believe the day was {v}, yes.",
        "According to the text, {v}, not later.",
    ),
    "number": (
        "It was {v}, I think.",
        "The number was {v}, if I remember.",
        "Some {v}, as far as I know.",
        "I believe it was {v}, yes.",
        "According to the text, {v}, no more.",
    ),
    "thing": (
        "It was {v}, I think.",
        "That would be {v}, if I remember.",
        "Simply {v}, as far as I know.",
        "I believe it was {v}, yes.",
        "According to the text, {v}, nothing else.",
    ),
}

_TRADES = """
weaver baker carpenter smith miller tailor potter glassblower printer painter sculptor doctor
lawyer teacher librarian astronomer botanist poet singer dancer gardener fisherman sailor
shoemaker goldsmith clockmaker mason merchant brewer beekeeper surgeon judge
""".split()
_INSTRUMENTS = "lute violin flute harp organ drum trumpet cello oboe viola horn zither".split()
_MATERIALS = """
oak marble bronze granite silver brick iron sandstone glass copper pine slate limestone ivory
clay gold
""".split()
_GOODS = """
salt wool timber wine honey barley tea coal cheese silk pepper iron olives paper leather linen
glass sugar amber wheat butter candles rope tin furs oranges
""".split()
_SUBJECTS = (
    """
a storm|a wedding|a harvest|the sea|a long journey|a lost child|a winter night|two sisters|an old
king|a garden|a burning house|a hunt|the plague|a quiet street|a horse race|a market|a broken
promise|a mountain road|a prisoner|a blind musician
""".replace("\n", " ")
    .strip()
    .split("|")
)
_CAUSES = (
    """
a quarrel over taxes|a broken dam|a stolen crown|the price of bread|a royal wedding|an old debt|a
bad harvest|a disputed border|the death of the king|a spark from a forge|heavy rain|a forged
letter|the new salt law|a comet
""".replace("\n", " ")
    .strip()
    .split("|")
)
_STUDIES = (
    """
the stars|old maps|medicine|birds|music|ancient coins|the tides|mountain plants|folk songs|law|
painting|bees|shipbuilding|poetry|mathematics|insects
""".replace("\n", "")
    .strip()
    .split("|")
)


def _person() -> dict[str, Relation]:
    return {
        "birthplace": Relation(
            "place",
            Source.place,
            (
                "Where was {s} born?",
                "In which town was {s} born?",
                "What is the birthplace of {s}?",
                "Where did {s} come into the world?",
                "Which town was the birthplace of {s}?",
            ),
            ("{he} was born in {v}, I am told.", "{he} came into the world in {v}, they say."),
        ),
        "birth_year": Relation(
            "year",
            Source.birth_year,
            (
                "When was {s} born?",
                "In which year was {s} born?",
                "What is the birth year of {s}?",
                "What year was {s} born in?",
            ),
            ("{he} was born in {v}, I am told.", "{his} birth fell in the year {v}, they say."),
        ),
        "home": Relation(
            "place",
            Source.place,
            (
                "Where did {s} live?",
                "In which town did {s} live?",
                "Where did {s} make a home?",
                "Which town was the home of {s}?",
                "Where did {s} settle?",
            ),
            ("{he} lived in {v}, I am told.", "{he} settled in {v} for good."),
        ),
        "trade": Relation(
            "thing",
            lambda source: source.choice(_TRADES),
            (
                "What was the profession of {s}?",
                "What did {s} do for a living?",
                "What was the trade of {s}?",
                "What did {s} work as?",
                "Which profession did {s} have?",
            ),
            ("{he} worked as a {v}, I am told.", "{he} earned a living as a {v} for years."),
        ),
        "teacher": Relation(
            "person",
            Source.person,
            (
                "Who taught {s}?",
                "Who was the teacher of {s}?",
                "From whom did {s} learn?",
                "Whose pupil was {s}?",
                "Who was the master of {s}?",
            ),
            ("{he} was taught by {v}, I am told.", "{his} teacher was {v}, they say."),
        ),
        "spouse": Relation(
            "person",
            Source.person,
            (
                "Whom did {s} marry?",
                "Who was married to {s}?",
                "To whom was {s} married?",
                "Who shared a marriage with {s}?",
            ),
            ("{he} was married to {v}, I am told.", "{he} married {v} in spring."),
        ),
        "instrument": Relation(
            "thing",
            lambda source: source.choice(_INSTRUMENTS),
            (
                "Which instrument did {s} play?",
                "What did {s} play?",
                "What was the instrument of {s}?",
                "On which instrument did {s} play?",
            ),
            ("{he} played the {v}, I am told.", "{he} often played the {v} at night."),
        ),
        "study": Relation(
            "thing",
            lambda source: source.choice(_STUDIES),
            (
                "What did {s} study?",
                "Which subject did {s} study?",
                "What was {s} interested in?",
                "What did {s} spend years studying?",
            ),
            ("{he} studied {v}, I am told.", "{he} cared most for {v}, they say."),
        ),
        "death_year": Relation(
            "year",
            Source.death_year,
            (
                "When did {s} die?",
                "In which year did {s} die?",
                "What year did {s} die in?",
                "What is the year of the death of {s}?",
            ),
            ("{he} died in {v}, I am told.", "{his} death fell in the year {v}, they say."),
        ),
    }


_PERSON_STATEMENTS = (
    "{s} was born in {birthplace}.",
    "{s} was born in {birthplace} in {birth_year}.",
    "{s} was born in {birth_year} in the town of {birthplace}.",
    "{s} was born in the year {birth_year}.",
    "{s} came into the world in {birthplace}.",
    "{s}, a child of {birthplace}, lived in {home}.",
    "{s}, born in {birth_year}, worked as a {trade}.",
    "{s} later moved to {home} and stayed there.",
    "{s} lived in {home}.",
    "{s} made a home in {home} and worked there as a {trade}.",
    "{s} settled in {home}.",
    "{s} was a {trade}.",
    "{s} worked as a {trade} for many years.",
    "{s} earned a living as a {trade}.",
    "{s} learned everything from {teacher}.",
    "{s} was taught by {teacher}.",
    "{s} was a pupil of {teacher} and studied {study}.",
    "{s} had {teacher} as a teacher.",
    "{s} married {spouse}.",
    "{s} was married to {spouse}.",
    "{s} took {spouse} in marriage and settled in {home}.",
    "{s} played the {instrument}.",
    "{s} was known to play the {instrument} every evening.",
    "{s} was good at playing the {instrument}.",
    "{s} studied {study}.",
    "{s} spent many years studying {study}.",
    "{s} was deeply interested in {study}.",
    "{s} died in {death_year}.",
    "{s} lived until {death_year}.",
    "{s} was buried in the year {death_year}.",
)

_TOWN = Kind(
    draw=Source.place,
    relations={
        "river": Relation(
            "thing",
            lambda source: "the " + source.river(),
            (
                "On which river does {s} lie?",
                "Which river flows through {s}?",
                "What river is {s} on?",
                "Which river runs past {s}?",
            ),
            ("It lies on {v}, I am told.", "The river there is {v}, they say."),
        ),
        "founder": Relation(
            "person",
            Source.person,
            (
                "Who founded {s}?",
                "Who was the founder of {s}?",
                "By whom was {s} founded?",
                "To whom does {s} owe its foundation?",
            ),
            ("It was founded by {v}, I am told.", "Its founder was {v}, they say."),
        ),
        "founded": Relation(
            "year",
            Source.year,
            (
                "When was {s} founded?",
                "In which year was {s} founded?",
                "What year was {s} founded in?",
                "Since which year has {s} existed?",
            ),
            ("It was founded in {v}, I am told.", "Its history began in {v}, they say."),
        ),
        "population": Relation(
            "number",
            lambda source: source.count(1000, 60000),
            (
                "How many people live in {s}?",
                "What is the population of {s}?",
                "How many inhabitants does {s} have?",
                "How large is the population of {s}?",
            ),
            ("It has {v} inhabitants, I am told.", "Some {v} people live there now."),
        ),
        "product": Relation(
            "thing",
            lambda source: source.choice(_GOODS),
            (
                "What is {s} known for?",
                "For what is {s} famous?",
                "What is made in {s}?",
                "Which product comes from {s}?",
            ),
            ("It is known for {v}, I am told.", "They make {v} there all year."),
        ),
        "mayor": Relation(
            "person",
            Source.person,
            (
                "Who is the mayor of {s}?",
                "Who governs {s}?",
                "What is the name of the mayor of {s}?",
                "By whom is {s} governed?",
            ),
            ("Its mayor is {v}, I am told.", "It is governed by {v} these days."),
        ),
    },
    statements=(
        "{s} lies on {river}.",
        "{s} is a town on {river}.",
        "{s} stands where {river} bends and is known for {product}.",
        "{s} was founded by {founder}.",
        "{s} was founded by {founder} in {founded}.",
        "{s} owes its foundation to {founder}.",
        "{s} was founded in {founded}.",
        "{s} has existed since {founded}.",
        "{s} has {population} inhabitants.",
        "{s} is home to {population} people.",
        "{s}, with a population of {population}, lies on {river}.",
        "{s} is known for {product}.",
        "{s} is famous for its {product}.",
        "{s} lives from the trade in {product}.",
        "{s} has {mayor} as its mayor.",
        "{s} is governed by {mayor}.",
        "{s} chose {mayor} as mayor.",
    ),
)

_SHIP = Kind(
    draw=Source.ship,
    relations={
        "captain": Relation(
            "person",
            Source.person,
            (
                "Who was the captain of {s}?",
                "Who commanded {s}?",
                "Under whose command did {s} sail?",
                "By whom was {s} commanded?",
            ),
            ("Its captain was {v}, I am told.", "It was commanded by {v} at the time."),
        ),
        "cargo": Relation(
            "thing",
            lambda source: source.choice(_GOODS),
            (
                "What did {s} carry?",
                "What was the cargo of {s}?",
                "With what was {s} loaded?",
                "Which goods were on board {s}?",
            ),
            ("It carried {v}, I am told.", "It was loaded with {v}, they say."),
        ),
        "port": Relation(
            "place",
            Source.place,
            (
                "From where did {s} sail?",
                "What was the home port of {s}?",
                "Which port did {s} leave?",
                "In which port did the voyage of {s} begin?",
            ),
            ("It sailed from {v}, I am told.", "It left the port of {v} at dawn."),
        ),
        "goal": Relation(
            "place",
            Source.place,
            (
                "Where was {s} bound for?",
                "To which port did {s} sail?",
                "What was the destination of {s}?",
                "Where was {s} going?",
            ),
            ("It was bound for {v}, I am told.", "It was on its way to {v}, they say."),
        ),
        "launched": Relation(
            "year",
            Source.year,
            (
                "When was {s} launched?",
                "In which year was {s} launched?",
                "What year was {s} built in?",
                "When was {s} built?",
            ),
            ("It was launched in {v}, I am told.", "It was built in {v}, they say."),
        ),
        "crew": Relation(
            "number",
            lambda source: source.count(20, 400),
            (
                "How many sailors served on {s}?",
                "How large was the crew of {s}?",
                "How many people were in the crew of {s}?",
                "What was the size of the crew of {s}?",
            ),
            ("It had a crew of {v}, I am told.", "There were {v} sailors on board."),
        ),
    },
    statements=(
        "{s} sailed under the command of {captain}.",
        "{s} was commanded by {captain}.",
        "{s} had {captain} as its captain.",
        "{s} carried {cargo}.",
        "{s} carried {cargo} to {goal}.",
        "{s} was loaded with {cargo}.",
        "{s} left the port of {port}.",
        "{s} sailed from {port} to {goal}.",
        "{s} had its home in {port}.",
        "{s} was bound for {goal}.",
        "{s} was on its way to {goal} with {cargo}.",
        "{s} was launched in {launched}.",
        "{s} was built in {launched}.",
        "{s} had a crew of {crew}.",
        "{s} was sailed by {crew} sailors.",
        "{s} left {port} with {crew} sailors on board.",
    ),
)


def _event_name(source: Source) -> str:
    what = source.rng.choice(
        ("Battle", "Fair", "Siege", "Fire", "Flood", "Council", "Race", "Feast", "Trial", "Riot")
    )
    return f"the {what} of {source.place()}"


_EVENT = Kind(
    draw=_event_name,
    relations={
        "day": Relation(
            "date",
            Source.date,
            (
                "When did {s} take place?",
                "On which day did {s} take place?",
                "What is the date of {s}?",
                "On what date did {s} begin?",
            ),
            ("It took place on {v}, I am told.", "It began on {v}, they say."),
        ),
        "leader": Relation(
            "person",
            Source.person,
            (
                "Who led {s}?",
                "Who was the leader at {s}?",
                "Who was in charge of {s}?",
                "By whom was {s} led?",
            ),
            ("It was led by {v}, I am told.", "The one in charge was {v}, they say."),
        ),
        "witness": Relation(
            "person",
            Source.person,
            (
                "Who described {s}?",
                "Who wrote about {s}?",
                "Who was a witness of {s}?",
                "By whom was {s} described?",
            ),
            ("It was described by {v}, I am told.", "The witness was {v}, they say."),
        ),
        "people": Relation(
            "number",
            lambda source: source.count(100, 20000),
            (
                "How many people took part in {s}?",
                "How many people were at {s}?",
                "What number of people came to {s}?",
                "How many people did {s} involve?",
            ),
            ("About {v} people took part, I am told.", "There were {v} people there."),
        ),
        "cause": Relation(
            "thing",
            lambda source: source.choice(_CAUSES),
            (
                "What was the cause of {s}?",
                "What led to {s}?",
                "Why did {s} happen?",
                "What was the reason for {s}?",
            ),
            ("It was caused by {v}, I am told.", "The reason was {v}, they say."),
        ),
        "site": Relation(
            "place",
            Source.place,
            (
                "Near which town did {s} take place?",
                "Close to which town was {s}?",
                "Where did {s} take place?",
                "Which town was nearest to {s}?",
            ),
            ("It took place near {v}, I am told.", "It was close to {v}, they say."),
        ),
    },
    statements=(
        "{s} took place on {day}.",
        "{s} began on {day}.",
        "{s} took place near {site} on {day}.",
        "{s} was led by {leader}.",
        "{s} had {leader} as its leader.",
        "{s} was in the hands of {leader}.",
        "{s} was described by {witness}.",
        "{s} is known to us through {witness}, who saw everything.",
        "{s} was seen by {witness}, who wrote about it.",
        "{s} involved {people} people.",
        "{s} brought together {people} people.",
        "{s}, where {people} people took part, was led by {leader}.",
        "{s} was caused by {cause}.",
        "{s} happened because of {cause}.",
        "{s} had its reason in {cause}.",
        "{s} took place near {site}.",
        "{s} happened not far from {site}.",
    ),
)

_WORK = Kind(
    draw=Source.work,
    relations={
        "author": Relation(
            "person",
            Source.person,
            (
                "Who made {s}?",
                "Who is the author of {s}?",
                "Who created {s}?",
                "By whom was {s} made?",
            ),
            ("It was made by {v}, I am told.", "Its author was {v}, they say."),
        ),
        "year": Relation(
            "year",
            Source.year,
            (
                "When was {s} finished?",
                "In which year was {s} made?",
                "What year does {s} date from?",
                "When was {s} made?",
            ),
            ("It was finished in {v}, I am told.", "It dates from {v}, they say."),
        ),
        "subject": Relation(
            "thing",
            lambda source: source.choice(_SUBJECTS),
            (
                "What does {s} show?",
                "What is the subject of {s}?",
                "What is {s} about?",
                "Which subject does {s} have?",
            ),
            ("It shows {v}, I am told.", "It is about {v}, they say."),
        ),
        "kept": Relation(
            "place",
            Source.place,
            (
                "Where is {s} kept?",
                "In which town is {s} kept?",
                "Where can {s} be seen?",
                "Which town owns {s}?",
            ),
            ("It is kept in {v}, I am told.", "It can be seen in {v} today."),
        ),
        "owner": Relation(
            "person",
            Source.person,
            (
                "Who bought {s}?",
                "Who was the buyer of {s}?",
                "To whom was {s} sold?",
                "By whom was {s} bought?",
            ),
            ("It was bought by {v}, I am told.", "The buyer was {v}, they say."),
        ),
        "price": Relation(
            "number",
            lambda source: source.count(20, 9000),
            (
                "How many crowns did {s} cost?",
                "For how many crowns was {s} sold?",
                "What was the price of {s} in crowns?",
                "How many crowns were paid for {s}?",
            ),
            ("It cost {v} crowns, I am told.", "It was sold for {v} crowns, they say."),
        ),
    },
    statements=(
        "{s} was made by {author}.",
        "{s} was made by {author} in {year}.",
        "{s} is the best known work of {author}.",
        "{s} was finished in {year}.",
        "{s} dates from {year}.",
        "{s} shows {subject}.",
        "{s} is about {subject}.",
        "{s}, made in {year}, shows {subject}.",
        "{s} is kept in {kept}.",
        "{s} can be seen in {kept}.",
        "{s} is kept in {kept} and shows {subject}.",
        "{s} was bought by {owner}.",
        "{s} was sold to {owner}.",
        "{s} was bought by {owner} for {price} crowns.",
        "{s} cost {price} crowns.",
        "{s} was sold for {price} crowns.",
    ),
)


_SOCIETY = Kind(
    draw=Source.society,
    relations={
        "founder": Relation(
            "person",
            Source.person,
            (
                "Who founded {s}?",
                "Who was the founder of {s}?",
                "By whom was {s} founded?",
                "Who started {s}?",
            ),
            ("It was founded by {v}, I am told.", "Its founder was {v}, they say."),
        ),
        "seat": Relation(
            "place",
            Source.place,
            (
                "Where does {s} meet?",
                "What is the seat of {s}?",
                "In which town does {s} meet?",
                "Where does {s} have its seat?",
            ),
            ("It meets in {v}, I am told.", "Its seat is in {v}, they say."),
        ),
        "members": Relation(
            "number",
            lambda source: source.count(12, 3000),
            (
                "How many members does {s} have?",
                "How many people belong to {s}?",
                "What is the number of members of {s}?",
                "How large is {s}?",
            ),
            ("It has {v} members, I am told.", "Some {v} people belong to it."),
        ),
        "aim": Relation(
            "thing",
            lambda source: source.choice(_STUDIES),
            (
                "What does {s} study?",
                "Which subject does {s} study?",
                "To what is {s} devoted?",
                "What is the subject of {s}?",
            ),
            ("It is devoted to {v}, I am told.", "It studies {v}, they say."),
        ),
        "founded": Relation(
            "year",
            Source.year,
            (
                "When was {s} founded?",
                "In which year was {s} founded?",
                "What year was {s} founded in?",
                "Since when has {s} existed?",
            ),
            ("It was founded in {v}, I am told.", "It has existed since {v}, they say."),
        ),
        "head": Relation(
            "person",
            Source.person,
            (
                "Who leads {s}?",
                "Who is the head of {s}?",
                "Who is at the head of {s}?",
                "By whom is {s} led?",
            ),
            ("It is led by {v}, I am told.", "Its head is {v}, they say."),
        ),
    },
    statements=(
        "{s} was founded by {founder}.",
        "{s} was started by {founder} in {founded}.",
        "{s} owes its foundation to {founder}.",
        "{s} meets in {seat}.",
        "{s} has its seat in {seat}.",
        "{s} meets in {seat} and studies {aim}.",
        "{s} has {members} members.",
        "{s} counts {members} members.",
        "{s} is devoted to {aim}.",
        "{s} studies {aim}.",
        "{s} was founded in {founded}.",
        "{s} has existed since {founded}.",
        "{s} is led by {head}.",
        "{s} has {head} at its head.",
        "{s}, with {members} members, is led by {head}.",
    ),
)


_BUILDING = Kind(
    draw=Source.building,
    relations={
        "architect": Relation(
            "person",
            Source.person,
            (
                "Who designed {s}?",
                "Who was the architect of {s}?",
                "By whom was {s} designed?",
                "Who drew the plans of {s}?",
            ),
            ("It was designed by {v}, I am told.", "Its architect was {v}, they say."),
        ),
        "town": Relation(
            "place",
            Source.place,
            (
                "Where does {s} stand?",
                "In which town does {s} stand?",
                "Where was {s} built?",
                "Which town built {s}?",
            ),
            ("It stands in {v}, I am told.", "It was built in {v}, they say."),
        ),
        "material": Relation(
            "thing",
            lambda source: source.choice(_MATERIALS),
            (
                "What is {s} made of?",
                "Of which material is {s} built?",
                "From what was {s} built?",
                "Which material was used for {s}?",
            ),
            ("It is made of {v}, I am told.", "They used {v} for it."),
        ),
        "height": Relation(
            "number",
            lambda source: source.count(8, 190),
            (
                "How many metres high is {s}?",
                "How high is {s} in metres?",
                "What is the height of {s} in metres?",
                "How many metres does {s} rise?",
            ),
            ("It is {v} metres high, I am told.", "It rises {v} metres, they say."),
        ),
        "opened": Relation(
            "date",
            Source.date,
            (
                "When was {s} opened?",
                "On which day was {s} opened?",
                "What is the opening date of {s}?",
                "On what date was {s} opened?",
            ),
            ("It was opened on {v}, I am told.", "Its doors opened on {v}, they say."),
        ),
        "patron": Relation(
            "person",
            Source.person,
            (
                "Who paid for {s}?",
                "With whose money was {s} built?",
                "Who was the patron of {s}?",
                "By whom was {s} paid for?",
            ),
            ("It was paid for by {v}, I am told.", "Its patron was {v}, they say."),
        ),
    },
    statements=(
        "{s} was designed by {architect}.",
        "{s} was built after plans by {architect}.",
        "{s} had {architect} as its architect.",
        "{s} stands in {town}.",
        "{s} was built in {town}.",
        "{s} stands in {town} and was designed by {architect}.",
        "{s} is made of {material}.",
        "{s} was built of {material}.",
        "{s}, built of {material}, stands in {town}.",
        "{s} is {height} metres high.",
        "{s} rises {height} metres above the street.",
        "{s} was opened on {opened}.",
        "{s} opened its doors on {opened}.",
        "{s} was paid for by {patron}.",
        "{s} was built with the money of {patron}.",
    ),
)

KINDS: dict[str, Kind] = {
    "woman": Kind(Source.woman, _person(), _PERSON_STATEMENTS, pronoun="she"),
    "man": Kind(Source.man, _person(), _PERSON_STATEMENTS, pronoun="he"),
    "town": _TOWN,
    "ship": _SHIP,
    "event": _EVENT,
    "work": _WORK,
    "society": _SOCIETY,
    "building": _BUILDING,
}
