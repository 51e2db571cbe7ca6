"""How a new revision takes over traffic: steps, analysis and the human's controls."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from onnx_operator.api.common import (
    DECIMAL,
    ApiModel,
    ConfigMapKey,
    Duration,
    Image,
    ListedResources,
    ObjectName,
    Quantity,
    Share,
    Token,
    cel,
    duration_field,
    schema_extra,
    share_field,
)
from onnx_operator.api.windows import Window


class MetricName(StrEnum):
    """The metrics that need no query, because the operator knows how to measure them."""

    ERROR_RATIO = "errorRatio"
    SLOW_RATIO = "slowRatio"
    LATENCY_QUANTILE = "latencyQuantile"
    DISAGREEMENT = "disagreement"
    MEMORY = "memory"
    THROUGHPUT_PER_REPLICA = "throughputPerReplica"


class Provider(StrEnum):
    """Who measures."""

    PROMETHEUS = "prometheus"
    TRITON = "triton"
    JOB = "job"


_PLACEHOLDERS: Final = ("namespace", "model", "revision", "number", "services", "window")
# A brace that begins no placeholder is PromQL's own.
_PROMQL: Final = f"^([^{{]|[{{][{{]({'|'.join(_PLACEHOLDERS)})[}}][}}]|[{{]([^{{]|$))*$"

_FILLED_IN: Final = schema_extra(
    cel(
        f"self.matches('{_PROMQL}')",
        "has a placeholder that nobody fills in; those known are "
        + ", ".join(f"{{{{{name}}}}}" for name in _PLACEHOLDERS),
    )
)
PromQL = Annotated[str, Field(min_length=1, max_length=1024, json_schema_extra=_FILLED_IN)]


class PrometheusQuery(ApiModel):
    """What to ask of Prometheus: two counts, or a value."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                "has(self.value) ? !has(self.bad) && !has(self.total) : has(self.bad) && has(self.total)",
                "give bad and total (two counts over {{window}}), or value (one number)",
            )
        )
    }

    bad: PromQL | None = None
    """How many answers were bad since the step began; add "or vector(0)" where the series is born with the first."""
    total: PromQL | None = None
    """How many answers there were since the step began."""
    value: PromQL | None = None
    """A number as it is now. Chance has no theory of it, so the promise of maxFalseRollback does not cover it."""


_Argument = Annotated[str, Field(max_length=512, json_schema_extra=_FILLED_IN)]


class VariableSecret(ApiModel):
    """A key of a Secret in the model's own namespace; given to the Job, never read by the operator."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key inside the Secret."""


class Variable(ApiModel):
    """One environment variable of a Job."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel("has(self.value) != has(self.secretKeyRef)", "give value or secretKeyRef, one of the two")
        )
    }

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable; one that the operator sets as well has this value."""
    value: _Argument | None = None
    """The value; the placeholders of args are filled in."""
    secret_key_ref: VariableSecret | None = None
    """Where the value is kept."""


DEFAULT_JOB_DEADLINE: Final = "5m"
DEFAULT_FAIL_EXIT_CODES: Final = (1,)


class AnalysisJob(ApiModel):
    """A Job whose end is the measurement."""

    image: Image
    """The image; the class says in limits.allowedAnalysisImages which are allowed, by default none. It runs as user
    1000 with nothing to write to but /tmp, and with no token of the API server."""
    command: Annotated[list[Annotated[str, Field(max_length=512)]], Field(max_length=8)] | None = None
    """What runs instead of the image's entry point."""
    args: Annotated[list[_Argument], Field(max_length=16)] | None = None
    """Arguments. Filled in are {{namespace}}, {{model}}, {{window}} (the time from the beginning of the step to that of
    the Job), and of the candidate {{revision}}, {{number}} and {{services}}. Kubernetes fills in $(CANDIDATE_URL) and
    the other variables."""
    env: (
        Annotated[
            list[Variable],
            Field(
                max_length=16,
                json_schema_extra=schema_extra(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["name"]),
            ),
        ]
        | None
    ) = None
    """Variables besides those that the operator sets: MODEL_NAME, and for both sides CANDIDATE_URL and STABLE_URL
    (http://…:8000), CANDIDATE_GRPC and STABLE_GRPC (…:8001), CANDIDATE_VERSION and STABLE_VERSION."""
    resources: ListedResources | None = None
    """What the container reserves and may use: at most limits.maxAnalysisResources of the class, which are its limits
    where it names none."""
    deadline: Annotated[str, duration_field(least="1s")] | None = None
    """The longest that the Job may take, retries included: 5m when unset, and at most limits.maxAnalysisDeadline of the
    class."""
    fail_exit_codes: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=125)]],
            Field(min_length=1, max_length=8, json_schema_extra=schema_extra(x_kubernetes_list_type="set")),
        ]
        | None
    ) = None
    """Exit codes that say that the candidate is bad; 1 when unset. Name others where your language ends with 1 when it
    crashes."""


_BUILT_IN: Final = str([str(name) for name in MetricName])  # as CEL writes a list, too
_IS_VALUE: Final = (
    "(self.name in ['memory', 'throughputPerReplica'] || (has(self.prometheus) && has(self.prometheus.value)))"
)
_HAS_VALUE_BOUND: Final = (
    "(has(self.maximumValue) || has(self.minimumValue) || has(self.maximumOfStable) || has(self.minimumOfStable))"
)
_Factor = Annotated[
    str,
    Field(
        pattern=DECIMAL,
        max_length=24,
        examples=["1.2"],
        json_schema_extra=schema_extra(
            cel(
                f"self.matches('{DECIMAL}') && double(self) > 0.0",
                'must be a number above 0 as text, such as "1.2" for a fifth more than stable\'s',
            )
        ),
    ),
]


class Metric(ApiModel):
    """One comparison of the candidate with stable over the same minutes."""

    model_config = {
        "json_schema_extra": schema_extra(
            cel(
                f"self.name in {_BUILT_IN} || has(self.prometheus) != has(self.job)",
                f"no built-in metric has this name; those are {', '.join(MetricName)}. A metric of your own needs "
                "prometheus, with bad and total or with value, or job; one of the two",
                field_path=".name",
            ),
            cel(
                f"self.name in {_BUILT_IN} || self.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                "a metric of your own has a name of lower-case letters, digits and dashes, such as bad-vectors",
                field_path=".name",
            ),
            cel(
                f"!(self.name in {_BUILT_IN}) || !has(self.prometheus)",
                "a built-in metric brings its own query; give a metric of your own a name of its own",
                field_path=".prometheus",
            ),
            cel(
                f"!(self.name in {_BUILT_IN}) || !has(self.job)",
                "a built-in metric is measured without a Job; give a metric of your own a name of its own",
                field_path=".job",
            ),
            cel(
                "!has(self.provider) || (self.provider == 'job') == has(self.job) && (self.provider == 'triton' ? "
                "self.name in ['errorRatio', 'throughputPerReplica'] : "
                "!(self.name in ['disagreement', 'throughputPerReplica']))",
                "errorRatio is measured by prometheus or triton, throughputPerReplica by triton, disagreement by the "
                "prober, what has job by job, and all others by prometheus; leave provider out",
                field_path=".provider",
            ),
            cel(
                "!(self.name in ['slowRatio', 'latencyQuantile']) || has(self.slowerThan)",
                "slowRatio and latencyQuantile need slowerThan, for example 250ms: the duration above which an answer "
                "counts as slow",
                field_path=".slowerThan",
            ),
            cel(
                "self.name in ['slowRatio', 'latencyQuantile'] || !has(self.slowerThan)",
                "slowerThan belongs to slowRatio and latencyQuantile only",
                field_path=".slowerThan",
            ),
            cel(
                "(self.name == 'latencyQuantile') == has(self.quantile)",
                'latencyQuantile needs quantile, such as "0.99", and no other metric has one',
                field_path=".quantile",
            ),
            cel(
                "self.name != 'latencyQuantile' || (!has(self.maximum) && !has(self.tolerance))",
                "the bound of latencyQuantile is quantile and slowerThan; use slowRatio for maximum and tolerance",
            ),
            cel(
                f"{_IS_VALUE} || has(self.job) || self.name == 'latencyQuantile' || has(self.maximum)"
                " || has(self.tolerance)",
                "give maximum (absolute bound) or tolerance (how much worse than stable is fine), or both",
            ),
            cel(
                f"!({_IS_VALUE} || has(self.job)) || (!has(self.maximum) && !has(self.tolerance) && !has(self.detect))",
                "maximum, tolerance and detect are shares of answers; bound a value by maximumValue, minimumValue, "
                "maximumOfStable or minimumOfStable",
            ),
            cel(
                f"has(self.job) || {_IS_VALUE} == {_HAS_VALUE_BOUND}",
                "a value (memory, throughputPerReplica, prometheus.value) is bounded by maximumValue, minimumValue, "
                "maximumOfStable or minimumOfStable, and nothing else is",
            ),
            cel(
                "self.name != 'throughputPerReplica' || (!has(self.maximumValue) && !has(self.maximumOfStable) && "
                "!has(self.minimumOfStable))",
                "throughputPerReplica is bounded by minimumValue only: how much each side answers is decided by the "
                "weights",
            ),
            cel(
                "self.name != 'memory' || (!has(self.minimumValue) && !has(self.minimumOfStable))",
                "memory is bounded from above only: maximumValue, maximumOfStable",
            ),
            cel(
                "self.name == 'disagreement' || !has(self.minCosine)",
                "minCosine belongs to disagreement only",
                field_path=".minCosine",
            ),
        )
    }

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """errorRatio: share of requests answered with a server error. slowRatio: share of answers slower than
    slowerThan. latencyQuantile: the same, told as a quantile. disagreement: share of golden requests that candidate
    and stable answer differently. memory: the working set, in bytes, of the side's largest pod, as the kubelet's
    cAdvisor tells Prometheus. throughputPerReplica: answers per second and ready pod. Any other name: a metric of your
    own, see prometheus and job."""
    provider: Provider | None = None
    """For errorRatio: prometheus asks for what the gateway counted; triton asks the servers' pods themselves, so that
    no Prometheus is needed, but errors that the gateway gives, because no pod answers, are not seen. prometheus when
    unset, and triton where there is no gateway. Any other metric has one provider."""
    prometheus: PrometheusQuery | None = None
    """For a metric of your own: what to ask of Prometheus, once for the candidate and once for stable. Each expression
    gives one number. Filled in are {{namespace}}, {{model}}, {{revision}} (the name of the side's OnnxModelRevision),
    {{number}} (its number), {{services}} (its Services, as a regular expression) and {{window}} (the time since the
    step began, such as 137s)."""
    job: AnalysisJob | None = None
    """For a metric of your own: a Job that asks both versions by itself, once in every step, which ends only when the
    Job has. Exit code 0 is good, one of failExitCodes is bad and rolls back; any other end says nothing of the
    candidate and holds it. Where the metric has bounds for a value, exit code 0 goes with a number in
    /dev/termination-log: {"value": 1.25}, or {"value": 1.25, "stable": 1.5, "samples": 200}. Beyond a bound is bad."""
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
    """For slowRatio and latencyQuantile: an answer that takes longer is slow. Rounded up to the gateway's next
    histogram bucket."""
    quantile: Annotated[str, share_field(least="0.01", most="0.9999", example="0.99")] | None = None
    """For latencyQuantile: this share of the answers must not be slow. "0.99" with slowerThan 250ms: the 99th
    percentile is at most 250 ms, which is slowRatio with a maximum of "0.01"."""
    maximum_value: Quantity | None = None
    """For a value: the candidate fails when it is above this in three looks running, such as 2Gi for memory. What a
    Job says is judged once."""
    minimum_value: Quantity | None = None
    """For a value: the candidate fails when it is below this in three looks running."""
    maximum_of_stable: _Factor | None = None
    """For a value: the candidate fails when it is above so many times stable's in three looks running: "1.2" is a
    fifth more."""
    minimum_of_stable: _Factor | None = None
    """For a value: the candidate fails when it is below so many times stable's in three looks running: "0.8" is a
    fifth less."""
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


class VerdictLimits(ApiModel):
    """How long a step may stand at one verdict without a break. What is unset may last to the progress deadline."""

    no_data: Annotated[str, duration_field(least="1s")] | None = None
    """Too few samples to judge, or none."""
    provider_error: Annotated[str, duration_field(least="1s")] | None = None
    """What should measure does not answer."""
    inconclusive: Annotated[str, duration_field(least="1s")] | None = None
    """Neither harm nor its absence was shown."""


class GoldenKey(ConfigMapKey):
    """A key of a ConfigMap in the model's own namespace; mounted by the prober, never read by the operator."""

    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "golden.json"
    """The key that holds them: a JSON list of {name, inputs, outputs}, with tensors as in the open inference protocol.
    Of the outputs only the names count, because the candidate is compared with what stable answers."""


class GoldenRequests(ApiModel):
    """Requests of your own that both versions are asked, in place of those that validation made."""

    config_map: GoldenKey
    """Where they are; read once, when a candidate's prober starts."""


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
    """What happens when the progress deadline of a step, or limits.inconclusive, passes and the verdict is
    Inconclusive: neither harm nor its absence was shown. rollback gives the candidate up; proceed takes the step as
    passed."""
    limits: VerdictLimits = VerdictLimits()
    """How long the worst verdict of a step may be one that decides nothing, before the candidate meets the end that it
    has at the progress deadline. Pass needs no limit, and Fail has none."""
    golden_requests: GoldenRequests | None = None
    """What disagreement asks both versions; what the validation of stable's revision asked, when unset."""
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
            ),
            cel(
                "!has(self.mirror) || self.weight == 0",
                "a step with mirror is a shadow, whose answers go to nobody: give it weight 0, and let the candidate "
                "answer requests in a step of its own after it",
                field_path=".mirror",
            ),
        )
    }

    weight: Annotated[int, Field(ge=0, le=100)]
    """Percent of requests that the candidate answers in this step. 0 without mirror is a preview: the candidate is
    reached by the header x-onnx-track: candidate alone. There errorRatio and slowRatio are held to their maximum
    only, with whatever requests came by the header; they ask for no samples and are not compared with stable."""
    mirror: Annotated[int, Field(ge=1, le=100)] | None = None
    """Percent of stable's requests that are sent to the candidate as well, in a step of weight 0: a shadow. Its answers
    go to nobody and are judged as in a step with traffic, by all the bounds and with minimumSamples mirrored requests.
    What a request changes is changed twice. Needs a gateway that supports RequestMirror with a percentage."""
    duration: Duration | None = None
    """How long the step lasts at least; it ends only when the analysis passes. 1m when neither duration nor pause
    is given."""
    replicas: Annotated[int, Field(ge=1, le=100)] | None = None
    """Servers of the candidate per execution provider in this step, at least what its weight or mirror needs and at
    most serving.replicas; all that maxSurge leaves room for when unset."""
    metrics: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=63)]],
            Field(max_length=8, json_schema_extra=schema_extra(x_kubernetes_list_type="set")),
        ]
        | None
    ) = None
    """Names of the metrics that this step rests on; all of them when unset, and with [] it passes by time alone. The
    others are measured and told as with dryRun, but for Jobs, which are not run. A bake rests on all of them."""
    pause: Pause | None = None
    """Holds the step, once its analysis has passed, until promoteToken changes; written as pause: {}. No progress
    deadline counts while a person is waited for; analysis and rollback go on."""


#: A preview, then shadows by what they mirror, then steps with traffic by their weight.
_ORDER: Final = "s.weight * 101 + (has(s.mirror) ? s.mirror : 0)"
_DEFAULT_STEPS = tuple(Step(weight=weight, duration=DEFAULT_STEP_DURATION) for weight in (10, 50))

Steps = Annotated[
    list[Step],
    Field(
        min_length=1,
        max_length=16,
        json_schema_extra=schema_extra(
            # isSorted alone lets equal steps pass.
            cel(
                f"self.map(s, {_ORDER}).isSorted() && self.map(s, {_ORDER}).all(n, self.exists_one(s, {_ORDER} == n))",
                "weights of steps must ascend, each above the one before; of several steps of weight 0 the one without "
                "mirror comes first, and mirrors ascend",
            ),
            cel(
                "self.exists(s, s.weight > 0 || has(s.mirror) || has(s.pause))",
                "a step of weight 0 that is the only one needs pause: {}, because no request of the shared traffic has "
                "reached the candidate by then; give it a pause or mirror, or add a step with traffic",
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


class FreezeWindow(Window):
    """A time in which nothing new may reach users."""


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
    cel(
        "!has(self.steps) || !has(self.analysis) || !has(self.analysis.metrics)"
        " || self.steps.all(s, !has(s.metrics) || s.metrics.all(n, self.analysis.metrics.exists(m, m.name == n)))",
        "metrics of a step are names of metrics in analysis.metrics, and there is none of one of these names",
        field_path=".steps",
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
    """The longest that a candidate may take to become available, to pass one step, or to get the servers of the next.
    It does not count while a step with pause waits for a person, nor in a freeze window."""
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
    """The longest that a candidate may take to become available, to pass one step, or to get the servers of the next;
    the class's when unset. It does not count while a step with pause waits for a person, nor in a freeze window."""
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
