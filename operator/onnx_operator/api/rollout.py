"""How a new revision takes over traffic: steps, analysis and the human's controls."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from onnx_operator.api.common import ApiModel, Duration, Share, Token, cel, duration_field, schema_extra, share_field


class MetricName(StrEnum):
    """The metrics that need no query, because the operator knows how to measure them."""

    ERROR_RATIO = "errorRatio"
    SLOW_RATIO = "slowRatio"
    DISAGREEMENT = "disagreement"


class Metric(ApiModel):
    """One comparison of the candidate with stable over the same minutes."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "self.name != 'slowRatio' || has(self.slowerThan)",
                "slowRatio needs slowerThan, for example 250ms: the duration above which an answer counts as slow",
                field_path=".slowerThan",
            ),
            cel(
                "self.name == 'slowRatio' || !has(self.slowerThan)",
                "slowerThan belongs to slowRatio only",
                field_path=".slowerThan",
            ),
            cel(
                "has(self.maximum) || has(self.tolerance)",
                "give maximum (absolute bound) or tolerance (how much worse than stable is fine), or both",
            ),
            cel(
                "self.name == 'disagreement' || !has(self.minCosine)",
                "minCosine belongs to disagreement only",
                field_path=".minCosine",
            ),
        )
    }

    name: MetricName
    """errorRatio: share of requests answered with a server error. slowRatio: share of answers slower than
    slowerThan. disagreement: share of golden requests that candidate and stable answer differently."""
    maximum: Share | None = None
    """The candidate fails above this share, whatever stable does. A number from 0 to 1 as text, such as "0.05"."""
    tolerance: Share | None = None
    """The candidate fails when its share is above stable's by more than this, such as "0.01"."""
    detect: Annotated[str, share_field(least="0.0001", example="0.01")] | None = None
    """The harm that a step must have been able to see before it ends: a share beyond tolerance (beyond maximum where
    no tolerance is given), such as "0.01". How many samples that takes is computed from what stable shows, and told
    while they are awaited. With them a candidate passes that is beyond its bound by less than this, unless harm is
    proved. Unset, minimumSamples are enough, and a candidate beyond its bound is held until it is within it again."""
    # No default: kubectl apply sends a list whole, so a default inside of one is a change at every apply.
    dry_run: bool | None = None
    """When true, the metric is judged and told in status, and neither holds nor rolls back. For bounds that are new
    and not yet trusted."""
    slower_than: Annotated[str, duration_field(least="1ms")] | None = None
    """For slowRatio: an answer that takes longer is slow. Rounded up to the gateway's next histogram bucket."""
    min_cosine: Share | None = None
    """For disagreement: smallest cosine at which two vectors still count as the same answer; "0.95" when unset.
    int8-dynamic is typically around 0.99 of its float32 original."""


class Proof(StrEnum):
    """What ends a step."""

    GUARD = "guard"
    PROVE = "prove"


class AtDeadline(StrEnum):
    """What becomes of a candidate about which nothing was shown in time."""

    ROLLBACK = "rollback"
    PROCEED = "proceed"


class Analysis(ApiModel):
    """What is measured at every step, and how patiently."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                # has(), because a default is validated before the defaults of its own fields are filled in.
                "!has(self.proof) || self.proof != 'prove' || !has(self.metrics)"
                " || self.metrics.all(m, (!has(m.tolerance) || double(m.tolerance) > 0.0)"
                " && (!has(m.maximum) || double(m.maximum) > 0.0))",
                "with proof: prove every tolerance and maximum must be above 0: no number of samples shows that a"
                " candidate is not the least bit worse",
                field_path=".proof",
            )
        )
    }

    interval: Annotated[str, duration_field(least="1s")] = "10s"
    """How often the metrics are judged."""
    minimum_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Requests that the candidate must have answered in a step before the step can pass, even where metrics[].detect
    would need fewer. Fewer is NoData: it holds the rollout and, at the progress deadline, gives the candidate up."""
    max_false_rollback: Annotated[str, share_field(least="0.000001", most="0.1", example="0.001")] = "0.001"
    """The chance that a candidate which keeps to every bound is rolled back by mistake: a promise for a whole rollout,
    over all metrics, steps and looks. Smaller takes more requests to prove harm: a tenth of it about a third more."""
    proof: Proof = Proof.GUARD
    """guard: a step ends when it has lasted and no harm was shown, with the samples that detect and minimumSamples ask
    for. prove: a step ends only when the candidate is shown to be within every bound, as surely as harm is shown."""
    on_inconclusive: AtDeadline = AtDeadline.ROLLBACK
    """What happens when the progress deadline of a step passes and the verdict is Inconclusive: neither harm nor its
    absence was shown. rollback gives the candidate up; proceed takes the step as passed."""
    metrics: Annotated[
        list[Metric],
        Field(
            max_length=8,
            json_schema_extra=schema_extra(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["name"]),
        ),
    ] = [
        Metric(name=MetricName.ERROR_RATIO, maximum="0.05", tolerance="0.01"),
        Metric(name=MetricName.DISAGREEMENT, maximum="0.02"),
    ]
    """The metrics; an empty list promotes by time and readiness alone."""


class Pause(ApiModel):
    """Holds a step until a person lets it go on."""


DEFAULT_STEP_DURATION: Final = "1m"
DEFAULT_MAX_SURGE: Final = "100%"
DEFAULT_MAX_UNAVAILABLE: Final = "0%"

_SERVERS: Final = "^([0-9]{1,3}|(100|[1-9]?[0-9])%)$"
Servers = Annotated[
    str,
    Field(
        pattern=_SERVERS,
        examples=[1, "25%"],
        json_schema_extra=schema_extra(
            cel(f"string(self).matches('{_SERVERS}')", "must be a number of servers, or a share of them such as 25%"),
            x_kubernetes_int_or_string=True,
        ),
    ),
    BeforeValidator(str),  # a plain number in YAML
]
"""A number of servers, or a percentage of `serving.replicas`."""


class Step(ApiModel):
    """One stop on the candidate's way to all of the traffic."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "!has(self.duration) || !has(self.pause)",
                "a step has a duration or a pause, not both; with pause it lasts until promoteToken changes",
                field_path=".duration",
            )
        )
    }

    weight: Annotated[int, Field(ge=0, le=100)]
    """Percent of requests that the candidate answers in this step. 0 is a preview: the candidate is reached by the
    header x-onnx-track: candidate alone. There errorRatio and slowRatio are held to their maximum only, with whatever
    requests came by the header; they ask for no samples and are not compared with stable."""
    duration: Duration | None = None
    """How long the step lasts at least; it ends only when the analysis passes. 1m when neither duration nor pause
    is given."""
    replicas: Annotated[int, Field(ge=1, le=100)] | None = None
    """Servers of the candidate per execution provider in this step, at least what its weight needs and at most
    serving.replicas; all that maxSurge leaves room for when unset."""
    pause: Pause | None = None
    """Holds the step, once its analysis has passed, until promoteToken changes; written as pause: {}. No progress
    deadline counts while a person is waited for; analysis and rollback go on."""


_DEFAULT_STEPS = tuple(Step(weight=weight, duration=DEFAULT_STEP_DURATION) for weight in (10, 50))

Steps = Annotated[
    list[Step],
    Field(
        min_length=1,
        max_length=16,
        json_schema_extra=schema_extra(
            # isSorted alone lets equal weights pass.
            cel(
                "self.map(s, s.weight).isSorted() && self.all(s, self.exists_one(t, t.weight == s.weight))",
                "weights of steps must ascend, each above the one before",
            ),
            cel(
                "self.exists(s, s.weight > 0 || has(s.pause))",
                "a step of weight 0 that is the only one needs pause: {}, because no request of the shared traffic has "
                "reached the candidate by then; give it a pause, or add a step with traffic",
            ),
            x_kubernetes_list_type="atomic",
        ),
    ),
]


class Bake(ApiModel):
    """A while after the last step in which the revision before is kept warm."""

    duration: Duration
    """How long the candidate answers all requests, and is judged on, before the revision it replaces is let go; 0s is
    no bake."""


class RollbackWindow(ApiModel):
    """Which of the revisions that were stable before still count as known to be good."""

    revisions: Annotated[int, Field(ge=0, le=10)]
    """How many of them, the latest first; 0 is no window, whatever the class says. They are kept besides
    revisionHistoryLimit."""
    duration: Annotated[str, duration_field(least="1m")] | None = None
    """How long after it was stable a revision counts; for ever when unset."""


def _cron_field(value: str) -> str:
    item = f"([*]|{value}(-{value})?)(/[0-9]{{1,2}})?"
    return f"{item}(,{item})*"


_MONTHS: Final = "JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC"
_CRON: Final = " ".join(
    (
        f"(?i)^{_cron_field('[0-5]?[0-9]')}",
        _cron_field("([01]?[0-9]|2[0-3])"),
        _cron_field("(0?[1-9]|[12][0-9]|3[01]|LW?)"),
        _cron_field(f"(0?[1-9]|1[0-2]|{_MONTHS})"),
        f"{_cron_field('([0-7]|SUN|MON|TUE|WED|THU|FRI|SAT)(L|#[1-5])?')}$",
    )
)


class FreezeWindow(ApiModel):
    """A time in which nothing new may reach users."""

    schedule: Annotated[
        str,
        Field(
            max_length=100,
            examples=["0 18 * * FRI"],
            json_schema_extra=schema_extra(
                cel(
                    f"self.matches('{_CRON}')",
                    "must be five cron fields with one space between them (minute, hour, day of month, month, day of "
                    "week), such as 0 18 * * FRI",
                )
            ),
        ),
    ]
    """When the window opens: minute, hour, day of month, month and day of week, as in Debian's cron. "0 18 * * FRI" is
    Friday at six in the evening, "0 0 L * *" the last day of each month, "0 0 * * TUE#2" its second Tuesday."""
    duration: Annotated[str, duration_field(least="1m")]
    """How long it stays open, such as 62h for a weekend; windows may overlap."""
    time_zone: Annotated[
        str,
        Field(
            max_length=64,
            examples=["Europe/Berlin"],
            json_schema_extra=schema_extra(
                cel(
                    "self.matches('^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$')",
                    "must be the IANA name of a time zone, such as Europe/Berlin or UTC",
                )
            ),
        ),
    ] = "UTC"
    """IANA name of the time zone that the schedule is read in, such as Europe/Berlin."""


FreezeWindows = Annotated[
    list[FreezeWindow], Field(max_length=16, json_schema_extra=schema_extra(x_kubernetes_list_type="atomic"))
]

_ROLLOUT_RULES: Final = schema_extra(
    cel(
        "!has(self.maxSurge) || !has(self.maxUnavailable)"
        " || ![self.maxSurge, self.maxUnavailable].all(one, string(one) in ['0', '0%'])",
        "maxSurge and maxUnavailable cannot both be 0: the candidate's first server needs room; allow one more, or let "
        "stable give one up",
        field_path=".maxSurge",
    ),
    cel(
        "!has(self.steps) || !has(self.progressDeadline)"
        f" || self.steps.all(s, has(s.pause) || duration(has(s.duration) ? s.duration : '{DEFAULT_STEP_DURATION}')"
        " < duration(self.progressDeadline))",
        "progressDeadline must be longer than the duration of every step, or no candidate can pass that step",
        field_path=".progressDeadline",
    ),
)

ProgressDeadline = Annotated[str, duration_field(least="10s")]


class RolloutDefaults(ApiModel):
    """What a class gives to models that say nothing about their rollout."""

    model_config = {"json_schema_extra": _ROLLOUT_RULES}

    steps: Steps = list(_DEFAULT_STEPS)
    """Weights the candidate passes through before it is promoted to 100."""
    analysis: Analysis = Analysis()
    """What must hold at every step."""
    progress_deadline: ProgressDeadline = "15m"
    """The longest that a candidate may take to become available or to pass one step. It does not count while a
    step with pause waits for a person, nor in a freeze window."""
    max_surge: Servers = DEFAULT_MAX_SURGE
    """How many servers there may be above serving.replicas, per execution provider, while two revisions serve."""
    max_unavailable: Servers = DEFAULT_MAX_UNAVAILABLE
    """By how many servers a side may be below what its weight needs."""
    bake: Bake | None = None
    """After the last step: how long the revision before is kept warm; none when unset."""
    rollback_window: RollbackWindow | None = None
    """Going back to which revisions takes no steps; none when unset."""
    freeze_windows: FreezeWindows = []
    """Times in which no rollout of any model of this class starts, advances or is promoted; a model's own windows
    apply as well. Rollback and abort always may, and a model that serves nothing yet serves its first revision."""


class Rollout(ApiModel):
    """How a new revision of this model takes over, and the controls for people and pipelines."""

    model_config = {"json_schema_extra": _ROLLOUT_RULES}

    steps: Steps | None = None
    """Weights the candidate passes through before it is promoted to 100; the class's when unset."""
    analysis: Analysis | None = None
    """What must hold at every step; the class's when unset."""
    progress_deadline: ProgressDeadline | None = None
    """The longest that a candidate may take to become available or to pass one step; the class's when unset. It does
    not count while a step with pause waits for a person, nor in a freeze window."""
    max_surge: Servers | None = None
    """How many servers there may be above serving.replicas, per execution provider, while two revisions serve: a
    number, or a percentage of replicas, rounded up. Below 100% stable gives up servers as its weight falls, each only
    when the candidate needs it for its next step, and never below what its weight needs. 0 needs maxUnavailable. The
    class's when unset."""
    max_unavailable: Servers | None = None
    """By how many servers a side may be below what its weight needs, so that the other gets its first or next one: a
    number, or a percentage of replicas, rounded down. A number not below replicas lets stable stop before the candidate
    starts: nothing answers in between. The class's when unset."""
    bake: Bake | None = None
    """After the last step, or after promoteToken skipped the rest: the candidate answers all requests for this long and
    is judged on, while the servers of the revision before are kept with weight 0. A Fail or abortToken sends all
    requests back there at once; promoteToken ends the bake; so does another spec, unless it is the one before, which
    serves again at once. The class's when unset, and none when that is unset, too."""
    rollback_window: RollbackWindow | None = None
    """A spec that goes back to one of the revisions that were stable last is no rollout: its servers start, and then it
    takes all requests at once, without steps, analysis or bake, even in a freeze window; paused holds it. A revision
    that was itself gone back from, or that is or was in quarantine since, is not known to be good. The class's when
    unset, and none when that is unset, too."""
    freeze_windows: FreezeWindows = []
    """Times in which no rollout of this model starts, advances or is promoted, not even by promoteToken, which is kept
    until the window closes; besides the class's, which apply as well. A new revision is converted, validated and
    started meanwhile. Rollback and abort always may, and the first revision of a model serves at once."""
    paused: bool = False
    """Holds the rollout where it is: weights and steps stay, analysis and rollback go on."""
    promote_token: Token = ""
    """Any change of this text is one request for the present candidate. In a step with pause it lets the candidate go
    on to the next step, or be promoted after the last one, as soon as the analysis of the step passes. Anywhere else
    it promotes the candidate at once, without waiting for analysis or for the remaining steps (where maxSurge leaves
    no room for that: through those steps as fast as servers start); where a bake is declared that begins, and another
    change ends it. Before the first step it counts as if given in it. What cannot
    act yet is kept in status.candidate.promotionAskedTime and ends with the candidate."""
    abort_token: Token = ""
    """Any change of this text takes the candidate out. Wins over promoteToken."""
    retry_token: Token = ""
    """Any change of this text lifts the quarantine and tries the revision again, fetching the source anew."""
