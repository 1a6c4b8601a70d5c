"""What the order of the stages makes of measurements that are given to it: no model is trained."""

import io
from types import SimpleNamespace

import pytest
from test_recipe_rules import FAR, NEAR, NEARER, TEACHER, rows

from hf_bitdistill.recipe import RecipeError, RecipeSettings
from hf_bitdistill.recipe.efforts import Effort
from hf_bitdistill.recipe.plan import DISTILL, Plan, Planned, further_title, rate_title, round_title, start_title
from hf_bitdistill.recipe.plan import TEACHER as TEACHER_TITLE
from hf_bitdistill.recipe.progress import Progress
from hf_bitdistill.recipe.run import _Run
from hf_bitdistill.recipe.settings import parse_budget


class Scripted(_Run):
    """A run whose stages do nothing, and whose models are as good as a script says.

    Args:
        script: title of a stage -> the student after it on the held-out rows.
        conditional: stages that run only perhaps. Default: all but the first.
    """

    def __init__(self, script, numbers, budget=None, seconds=10.0, conditional=None, **given):
        self.settings = RecipeSettings(model="m", dataset="d", output_dir="o", budget=budget, **given)
        self.work = SimpleNamespace(
            numbers=numbers,
            distill_steps=lambda share=1.0: round(100 * share),
            teacher_steps=lambda share=1.0: round(100 * share),
            teacher=lambda *_: pytest.fail("a stage is not run"),
            distill=lambda *_: pytest.fail("a stage is not run"),
            start_tokens=lambda steps: steps,
            start=lambda model, steps: pytest.fail("a stage is not run"),
        )
        self.script, self.ran = script, []
        self.progress, self.choices, self.data = Progress(io.StringIO()), [], {}
        self.seconds, self.kept_at = {}, {}
        self.budget = parse_budget(budget) if budget else None
        if conditional is None:
            conditional = list(script)[1:]
        self.plan = Plan([Planned(title, 0, 0, seconds, "if" * (title in conditional)) for title in script])

    def stage(self, title, kind, names, work, parent, **identity):
        self.ran.append(title)
        self.seconds[title] = self.plan.stages[0].seconds
        return SimpleNamespace(
            key=title,
            model=title,
            result={"kept_in_full_precision": self.kept_at.get(title, []), "left_out": []},
            title=title,
        )

    def measured(self, title, model):
        return self.script[title]

    def in_short(self, title, kind, names, training, parent, **identity):
        self.stage(title, kind, names, training, parent, **identity)
        return self.script[title]


ROUNDS = [round_title(number) for number in range(3)]
TEACHER_STAGE = SimpleNamespace(key="teacher", model="t")
ONE_RATE = Effort(distill_rounds=3, distill_learning_rates=(1e-4,))
WORSE = rows(2.0, 2.1, 2.0, 2.2, right=[0, 0, 1, 0])


@pytest.mark.parametrize(
    "after,ran,kept",
    [
        ((NEAR, NEARER, TEACHER), 3, 2),
        # The second closed nothing, and is no worse; the third is not tried.
        ((NEAR, NEAR, TEACHER), 2, 1),
        ((NEAR, WORSE, TEACHER), 2, 0),
        ((WORSE, NEAR, TEACHER), 1, None),
        # Nothing is left after the first.
        ((TEACHER, NEAR, NEAR), 1, 0),
    ],
)
def test_rounds_of_distillation(after, ran, kept):
    run = Scripted(dict(zip(ROUNDS, after, strict=True)), ONE_RATE)
    start = SimpleNamespace(title="start", model="s", key="s")
    done = run.distill(start, TEACHER_STAGE, TEACHER, FAR)
    assert run.ran == ROUNDS[:ran]
    assert done.student.title == ("start" if kept is None else ROUNDS[kept])
    assert done.measured == (FAR if kept is None else after[kept])
    assert done.distilled.title == ROUNDS[ran - 1]
    assert [each.effort for each in done.tries] == [0, 100, 200, 300][: ran + 1]


def test_no_distillation_where_no_gap_is_left():
    run = Scripted({}, ONE_RATE)
    start = SimpleNamespace(title="start", model="s", key="s")
    done = run.distill(start, TEACHER_STAGE, TEACHER, TEACHER)
    assert not run.ran and done.student is start and done.distilled is None
    assert "no gap is left" in run.choices[0]


def test_the_warm_start_goes_on_while_there_is_time():
    numbers = Effort(window_steps=100, extra_doublings=2)
    titles = [start_title(steps) for steps in (100, 200, 400)]
    script = dict(zip(titles, (FAR, NEAR, NEARER), strict=True))
    teacher = SimpleNamespace(key="t", model="t")
    best, _, tries = Scripted(script, numbers).start(teacher, TEACHER)
    assert best.title == titles[2] and [each.effort for each in tries] == [100, 200, 400]
    # Ten seconds each: a budget of 25 has time for one more, and not for two.
    run = Scripted(script, numbers, budget="25s")
    best, measured, _ = run.start(teacher, TEACHER)
    assert best.title == titles[1] and measured is NEAR
    assert "budget has no time" in run.choices[-1]
    # What got worse is not taken, nor are the projections told that it left as they were.
    run = Scripted({**script, titles[1]: WORSE}, numbers)
    run.kept_at = {titles[0]: ["one"], titles[1]: ["one", "two"]}
    best, _, tries = run.start(teacher, TEACHER)
    assert best.title == titles[0] and len(tries) == 2 and run.kept == ["one"]


TWO_RATES = Effort(distill_learning_rates=(4e-4, 1e-4))
OWN = [rate_title(DISTILL, each) for each in TWO_RATES.distill_learning_rates]
BEYOND = [further_title(DISTILL, number) for number in range(2)]


def swept(own, beyond, budget=None, **given):
    """A distillation whose short runs, at its own rates and beyond them, are as good as said."""
    script = {**dict(zip(OWN, own, strict=True)), **dict(zip(BEYOND, beyond, strict=False)), ROUNDS[0]: NEARER}
    run = Scripted(script, TWO_RATES, budget, conditional=BEYOND, **given)
    run.distill(SimpleNamespace(key="s", model="s"), TEACHER_STAGE, TEACHER, FAR)
    return run


def chosen(run):
    return next(choice for choice in run.choices if "runs at the learning rate" in choice)


@pytest.mark.parametrize(
    "own,beyond,tried,rate",
    [
        # The highest is the best, then the one beyond it, and what is beyond that is worse.
        ((NEAR, FAR), [NEARER, WORSE], 2, "0.0016"),
        ((NEAR, FAR), [WORSE, TEACHER], 1, "0.0004"),
        # The lowest, and as often as it may.
        ((FAR, NEAR), [NEARER, TEACHER], 2, "6.25e-06"),
        # One that does not stay finite is none.
        ((NEAR, FAR), [None, TEACHER], 1, "0.0004"),
        ((None, NEAR), [WORSE, TEACHER], 1, "0.0001"),
    ],
)
def test_a_sweep_goes_on_past_its_edge(own, beyond, tried, rate):
    run = swept(own, beyond)
    assert run.ran == [*OWN, *BEYOND[:tried], ROUNDS[0]]
    assert f"learning rate {rate}: " in chosen(run)
    assert ("not finite" in chosen(run)) == (None in (*own, *beyond))
    # A search that ends at its edge says so.
    assert chosen(run).endswith("edge of the search, 1.5625e-06 was not tried") == (rate == "6.25e-06")


def test_no_rate_at_which_it_stays_finite():
    with pytest.raises(RecipeError, match="lower distill_learning_rates"):
        swept((None, None), [NEAR, NEAR])


def test_rates_that_are_given_are_all_there_are():
    run = swept((NEAR, FAR), [NEARER, WORSE], distill_learning_rates=[4e-4, 1e-4])
    assert run.ran == [*OWN, ROUNDS[0]] and "the best is at the edge of the search, 0.0016 was not tried" in chosen(
        run
    )


# Own rates and the distillation take 30 s; of a budget nine tenths are for more rates.
@pytest.mark.parametrize("budget,tried", [("40s", 0), ("45s", 1), ("50s", 1), ("56s", 2)])
def test_a_budget_with_time_for_some_more_rates(budget, tried):
    assert swept((NEAR, FAR), [NEARER, TEACHER], budget).ran == [*OWN, *BEYOND[:tried], ROUNDS[0]]


def test_the_teacher_has_a_sweep_too():
    titles = [rate_title(TEACHER_TITLE, each) for each in Effort().teacher_learning_rates]
    beyond = further_title(TEACHER_TITLE, 0)
    script = {titles[0]: FAR, titles[1]: NEAR, beyond: WORSE, TEACHER_TITLE: NEARER}
    run = Scripted(script, Effort())
    run.fine_tunes, run.base = True, SimpleNamespace(key="m", model="m")
    run.models = SimpleNamespace(teacher=None, adapted=None)
    run.teacher()
    assert run.ran == [*titles, beyond, TEACHER_TITLE]
    assert "teacher runs at the learning rate 0.0002: " in chosen(run)
