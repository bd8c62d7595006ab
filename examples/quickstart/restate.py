"""The sentences of a docstring in other words: the first as what the thing is, the others as notes."""

import re
from collections.abc import Iterator

from docstring import Docstring, is_whole
from wording import VERBS, Pick, lower_first, quoted, simplify, third_person

GIST_WORDS = 26  # a longer first sentence is cut at a clause, or quoted in part
AND_VERB = (
    "return|raise|yield|create|convert|remove|update|parse|send|write|install|execute|call|make|wait|add"
)
NOUN_OPENINGS = re.compile(
    r"(?:(?:Abstract|Base|Helper|Simple|Generic|Common|Basic|Special|Private|Optional|Internal|Virtual) )*"
    r"(?:class|interface|mixin|mix-in|handler|decorator|wrapper|exception|metaclass|widget|container"
    r"|iterator|object|context manager|implementation|variant|subclass|version|method|function|collection"
    r"|mapping|codec|factory|hook|parser|reader|writer|server|event|error|type|proxy|utility|placeholder)\b",
    re.IGNORECASE,
)
FINITE = re.compile(
    r"\b(?:is|are|was|has|have|can|will|must|should|does|do|may|provides?|returns?|takes|contains?)\b"
)
ODD = re.compile(r"\bI\b(?!/)|->|=>|[\[\]{}<>]|^\w+\([^)]*,|: | -- ")  # not a sentence to take apart
TRUTH = re.compile(
    r"return (?:true|True) if (?P<condition>[^;]*?)"
    r"(?P<otherwise>(?:,|;)? ?(?:and )?(?:(?:otherwise|else)(?: returns?)? |, )(?:false|False)"
    r"(?: otherwise| if not)?)?"
)
# Openings that lean on the sentence before, so that the sentence says nothing, or something else, alone.
DANGLING = re.compile(
    r"(?:It|Its|This|That|These|Those|They|Their|He|She|Such|Otherwise|However|Then|Thus|Hence|Therefore"
    r"|Also|But|And|Or|Instead|Similarly|Likewise|Most likely|In this|In that|In all|In both|In such"
    r"|In either|Both|Each of|For this|For these|For example|Here|There|Second|Third|Additionally|Furthermore"
    r"|Moreover|Unlike|See|Note,? however|Usage|Copyright|Written|Author|Contributed)\b"
)
OWN_SUBJECT = re.compile(
    r"This (?:method|function|class|module|constructor|decorator|property|attribute|widget)\b"
)
DEMONSTRATIVE = re.compile(r"(?:It|This|They|These) ")
NOTE = re.compile(r"^(?:Note|Please note|Note also)(?: that|,|:)? (\w)")
AFTER_THAT = re.compile(
    r"(?:The|This|It|They|These|A|An|If|When|Each|All|Any|No|By default|Only|Every|Some|On|Once|Unless) "
)
ORDER_INSIDE = re.compile(rf", (?:{'|'.join(sorted(VERBS))}) ")
EASY_TO_MISS = " That is easy to miss."
LIMIT = re.compile(r"\b(?:must|cannot|can't|only|never|not|unless|should)\b")
REASON = re.compile(r"\b(?:because|so that|to avoid|useful)\b")


def restate_gist(doc: Docstring, pick: Pick) -> str:
    """The first sentence in other words; what is too odd to put into words is quoted."""
    gist = shorten(doc.gist)
    words, low = gist.split(), simplify(lower_first(gist, doc.own_words))
    first, second = words[0].lower().rstrip(","), words[1].lower() if len(words) > 1 else ""
    if gist.endswith("...") or ODD.search(gist):
        return pick(["The first line reads: {}.", "The text opens so: {}."], "quote").format(quoted(gist))
    if first in VERBS and second:
        return restate_order(low, pick)
    if first.endswith("ly") and second in VERBS:
        return f"Its job is to {low}."
    if is_third_person(first):
        return pick(["It {}.", "In short, it {}."], "third").format(low)
    if first in ("called", "used", "raised", "like", "similar", "same", "invoked", "closed"):
        return f"It is {'the ' if first == 'same' else ''}{low}."
    if OWN_SUBJECT.match(gist):
        return simplify(gist) + "."
    if first in ("if", "when", "given", "unless"):
        return pick(["It works like this: {}.", "The rule is this: {}."], "rule").format(low)
    if is_finite(gist):
        return pick(["The text says this: {}.", "The first thing it says: {}."], "says").format(low)
    if first in ("a", "an") or (first == "the" and doc.kind in ("class", "property")):
        return pick(["It is {}.", "In short, it is {}."], "noun").format(low)
    if NOUN_OPENINGS.match(gist):
        return f"It is {'an' if low[0] in 'aeio' else 'a'} {low}."
    return pick(["In a few words: {}.", "In short: {}.", "The text calls it this: {}."], "words").format(low)


def is_third_person(word: str) -> bool:
    return word.endswith("s") and bool({word[:-1], word[:-2], word[:-3] + "y"} & VERBS)


def is_finite(gist: str) -> bool:
    """Whether the gist seems to be a whole sentence and not a name for the thing."""
    words = re.split(r" (?:that|which|who) ", gist)[0].lower().split()[1:]
    return FINITE.search(" ".join(words)) is not None or any(w[-1:] == "s" and w[:-1] in VERBS for w in words)


def restate_order(phrase: str, pick: Pick) -> str:
    """A sentence from an imperative phrase; inflected only where one or two verbs have to be."""
    verb, _, rest = phrase.partition(" ")
    truth = TRUTH.fullmatch(phrase)
    if truth and "alse" not in truth["condition"]:
        shape = pick(["It answers True if {}{}.", "I get True from it if {}{}."], "truth")
        return shape.format(truth["condition"], ", and False if not" if truth["otherwise"] else "")
    single = not re.search(r"\b(?:and|or|then|but|else)\b|[;,]", rest)
    if verb in ("return", "get") and single:
        shapes = ["It returns {}."]
        if not re.match(r"(?:whether|to|from|if) ", rest):
            shapes += ["It gives back {}."]
        if re.match(r"(?:an?|the|all|one) ", rest):
            shapes += ["What comes back is {}."]
        return pick(shapes, "return").format(rest)
    also = re.fullmatch(rf"([^,;]*?) and ({AND_VERB}) ([^,;]*)", rest)
    if also and not re.search(r"\b(?:and|or|then)\b", f"{also[1]} {also[3]}"):
        return f"It {third_person(verb)} {also[1]} and {third_person(also[2])} {also[3]}."
    if single and pick(["inflect", "keep"], "inflect") == "inflect":
        return f"It {third_person(verb)} {rest}."
    return pick(["Its job is to {}.", "It is there to {}.", "I call on it to {}."], "job").format(phrase)


def shorten(gist: str) -> str:
    """The gist, cut where it is long: at a clause that only adds, never at a condition, else by dots."""
    words = gist.split()
    if len(words) <= GIST_WORDS and gist.count("(") == gist.count(")"):
        return gist
    head = " ".join(words[:GIST_WORDS])
    cuts = [m.start() for m in re.finditer(r"; |, which |, where | -- | - | \(|: ", head) if m.start() > 30]
    whole = [c for c in cuts if head[:c].count("(") == head[:c].count(")") and head[:c].count('"') % 2 == 0]
    return head[: whole[-1]].rstrip(",") if whole else " ".join(words[:16]).rstrip(",;:(") + " ..."


def notes(doc: Docstring, pick: Pick) -> Iterator[str]:
    """The sentences after the first that can stand alone, each said as a reader's note, in their order."""
    for index, sentence in enumerate(doc.sentences):
        own = OWN_SUBJECT.match(sentence) is not None
        after_gist = index == 0 and DEMONSTRATIVE.match(sentence) is not None
        see = re.fullmatch(r"See (?:also )?(?!PEP|RFC)([\w.() ]{3,60})\.", sentence)
        if see:
            yield f"For more, it sends me to {lower_first(see[1], doc.own_words)}."
        elif sentence.rstrip(".").lower() in doc.gist.lower():
            continue  # some texts say their first sentence twice
        elif is_whole(sentence) and (own or after_gist or not DANGLING.match(sentence)):
            said = NOTE.sub(lambda match: match[1].upper(), simplify(sentence))
            yield note(said, lower_first(said, doc.own_words), Pick(f"{pick.document_id}|{index}"))


def note(sentence: str, small: str, pick: Pick) -> str:
    """One sentence of the text as a reader's note, with a reaction to some; the frame goes by its subject.

    `small` is the same sentence, to go on after a colon.
    """
    raises = re.fullmatch(r"Raises? (.*)", sentence)
    if raises:
        frame = pick(
            ["It raises {}", "An error to expect: it raises {}", "It can fail: it raises {}"], "raises"
        )
        reaction = pick(["", " So I should be ready for that.", " I must plan for it."], "plan")
        return frame.format(raises[1]) + reaction
    returns = re.fullmatch(r"Returns? ([^,;]*)", sentence)
    if returns and not re.search(r"\b(?:and|or|else) \w", returns[1]):
        return pick(["It returns {}", "As to the result, it returns {}"], "returns").format(returns[1])
    if is_third_person(small.split()[0]):
        return pick(["It {}", "It also {}"], "third").format(small)
    if "deprecated" in small:
        return f"A warning: {small}" + pick([" I would avoid it in new code.", ""], "avoid")
    if REASON.search(small):
        return pick(["Here I see a reason: {}", "This tells me why: {}"], "why").format(small)
    frames, reactions = note_frames(sentence, small)
    return pick(frames, "frame").format(small) + pick(reactions, "reaction")


def note_frames(sentence: str, small: str) -> tuple[list[str], list[str]]:
    """Frames that suit the sentence, and reactions to it."""
    order = re.match(r"(?:\w+ly )?([\w-]+)", small)
    reactions = [""]
    if LIMIT.search(small):
        frames = ["The subtle part: {}", "I must watch one thing: {}", "One limit to keep in mind: {}"]
        reactions = ["", "", EASY_TO_MISS]
    elif order and order[1] in VERBS:
        frames = ["The text goes on: {}", "There is more to it: {}"]
    elif re.search(r"\bdefaults?\b", small):
        frames = ["The default matters here: {}", "About the default: {}"]
    elif re.match(r"(?:If|When) ", sentence):
        frames = ["There is a case to tell apart: {}"]
    else:
        frames = ["One more detail: {}", "I note this: {}"]
    if AFTER_THAT.match(sentence) and not ORDER_INSIDE.search(small):
        frames += ["I note that {}", "I also learn that {}", "The text adds that {}"]
    return frames, reactions
