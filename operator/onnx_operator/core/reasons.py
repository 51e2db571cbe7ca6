"""Every reason the operator gives in a condition, an Event or a status, and when it surfaces.

docs/reference/reasons.md is rendered from here and from the converter's own table. Reasons of a Job's container are
the converter's and used as they are; nothing is invented outside of these two modules.
"""

from __future__ import annotations

from typing import Final, Self


class Reason(str):
    """A documented constant; `surfaces` completes the sentence "this reason …"."""

    __slots__ = ("surfaces",)
    surfaces: str

    def __new__(cls, name: str, surfaces: str) -> Self:
        reason = super().__new__(cls, name)
        reason.surfaces = surfaces
        return reason


# Before and after everything else.
PENDING: Final = Reason("Pending", "surfaces when an earlier stage has to be done first")
SERVING: Final = Reason("Serving", "surfaces when the revision of the present spec answers all requests")
PACKED: Final = Reason(
    "Packed",
    "surfaces when every execution provider says serving: none: the artifact is published, and nothing is to be served",
)
SETTLED: Final = Reason("Settled", "surfaces when there is nothing left to do")
PROGRESSING: Final = Reason("Progressing", "surfaces when the operator is at work or waits for something that may come")

# Accepted
ACCEPTED: Final = Reason("Accepted", "surfaces when the class allows everything that the spec asks for")
INVALID_SPEC: Final = Reason(
    "InvalidSpec", "surfaces when a field holds what this operator cannot read; the message names it"
)
CLASS_NOT_FOUND: Final = Reason(
    "ClassNotFound", "surfaces when className names no OnnxModelClass, or none is the default and className is unset"
)
CLASS_INVALID: Final = Reason("ClassInvalid", "surfaces when a field of the OnnxModelClass cannot be read")
SOURCE_NOT_ALLOWED: Final = Reason("SourceNotAllowed", "surfaces when the class does not allow this kind of source")
MUTABLE_REVISION: Final = Reason(
    "MutableRevisionNotAllowed", "surfaces when a branch or tag is named and the class wants a commit of 40 digits"
)
PROVIDER_NOT_OFFERED: Final = Reason(
    "ExecutionProviderNotOffered", "surfaces when the class does not offer an execution provider of the spec"
)
REPLICAS_ABOVE_LIMIT: Final = Reason("ReplicasAboveLimit", "surfaces when serving.replicas is above the class's limit")
STEP_ABOVE_DEADLINE: Final = Reason(
    "StepLongerThanDeadline",
    "surfaces when a rollout step lasts as long as the progress deadline, so it could never pass",
)
STEP_WITHOUT_ROOM: Final = Reason(
    "StepWithoutRoom",
    "surfaces when maxSurge and maxUnavailable leave a rollout step no room for the servers that it needs",
)
STEP_WITHOUT_METRIC: Final = Reason(
    "StepWithoutMetric", "surfaces when a rollout step rests on a metric that rollout.analysis does not have"
)
GATEWAY_NEEDED: Final = Reason(
    "GatewayNeeded", "surfaces when there is no gateway and the spec asks for what only one can do; names the field"
)
WEIGHTS_ROUNDED: Final = Reason(
    "WeightsRounded",
    "surfaces when there is no gateway and the numbers of servers come to other weights than the steps ask for",
)
AUTOSCALING_WITHOUT_ROOM: Final = Reason(
    "AutoscalingWithoutRoom",
    "surfaces when serving.autoscaling meets a rollout in which a side would have fewer servers than it takes, or a "
    "number of its own",
)
FREEZE_WINDOW_INVALID: Final = Reason(
    "FreezeWindowInvalid",
    "surfaces when the schedule or the time zone of a freeze window cannot be read; the message names the field",
)
POOL_SCHEDULE_INVALID: Final = Reason(
    "PoolScheduleInvalid",
    "surfaces when the schedule or the time zone of a pool's weight cannot be read; the message names the field",
)

ANALYSIS_JOB_NOT_ALLOWED: Final = Reason(
    "AnalysisJobNotAllowed",
    "surfaces when the class does not allow the image, the resources or the deadline of a metric's Job",
)

GENERATED_CODE_NOT_ALLOWED: Final = Reason(
    "GeneratedCodeNotAllowed",
    "surfaces when an evaluation runs programs that the model writes, and the class does not allow it",
)

# SourceResolved
SOURCE_RESOLVED: Final = Reason("SourceResolved", "surfaces when the checkpoint's digest is known")
FETCHING: Final = Reason("Fetching", "surfaces when the fetch Job runs")

# Converted, Validated
CREATING_REVISION: Final = Reason("CreatingRevision", "surfaces when the OnnxModelRevision is being written")
CONVERTING: Final = Reason("Converting", "surfaces when the convert Job runs")
MEMORY_ABOVE_LIMIT: Final = Reason(
    "MemoryAboveLimit",
    "surfaces when the checkpoint's headers say that converting it takes more memory than the class's Jobs may use",
)
CONVERTED: Final = Reason("Converted", "surfaces when a graph exists for every execution provider")
VALIDATING: Final = Reason("Validating", "surfaces when a validate Job runs")
VALIDATED: Final = Reason("Validated", "surfaces when every graph was shown to behave like the original")

# What keeps a Job or a server from running; all of these recover by themselves once the cause is gone.
NOT_VALIDATED: Final = Reason(
    "NotValidated",
    "surfaces when no node took the validation of an execution provider, and the revision is served without it, or the "
    "class has it served all the same; the message names it",
)
UNSCHEDULABLE: Final = Reason("Unschedulable", "surfaces when no node fits the pod; the message is the scheduler's")
CLAIM_NOT_FOUND: Final = Reason(
    "ClaimNotFound", "surfaces when the pod names a PersistentVolumeClaim that does not exist"
)
CLAIM_NOT_BOUND: Final = Reason("ClaimNotBound", "surfaces when a PersistentVolumeClaim of the pod has no volume yet")
IMAGE_PULL_FAILED: Final = Reason("ImagePullFailed", "surfaces when a node cannot get an image of the pod")
CONTAINER_CONFIG_ERROR: Final = Reason(
    "ContainerConfigError",
    "surfaces when a container cannot be made, for example because a Secret or its key is missing",
)
QUOTA_EXCEEDED: Final = Reason("QuotaExceeded", "surfaces when a ResourceQuota of the namespace has no room")
POD_REFUSED: Final = Reason(
    "PodRefused", "surfaces when Pod Security, a LimitRange or an admission policy refuses a pod; the message names it"
)

# What ends a Job for good, besides the converter's own reasons.
JOB_DEADLINE_EXCEEDED: Final = Reason(
    "JobDeadlineExceeded",
    "surfaces when a Job ran longer than the class's jobs.deadline, or a metric's Job than its own",
)
OOM_KILLED: Final = Reason("OOMKilled", "surfaces when a container needed more memory than its limit")
EVICTED: Final = Reason("Evicted", "surfaces when the node threw the pod out, for example for lack of disk")
CONTAINER_FAILED: Final = Reason("ContainerFailed", "surfaces when a container ended without saying why")
RESULT_UNREADABLE: Final = Reason(
    "ResultUnreadable",
    "surfaces when a Job ended but its termination message is missing or garbled; never taken as success",
)

# CandidateAvailable
PUBLISHING: Final = Reason("Publishing", "surfaces when the publish Job writes the artifact")
WAITING_FOR_DRAIN: Final = Reason(
    "WaitingForDrain", "surfaces when servers start only after the ones taken out of the traffic are gone"
)
STARTING: Final = Reason("Starting", "surfaces when servers were created and not all of them are ready")
AVAILABLE: Final = Reason("Available", "surfaces when all servers are ready")
AVAILABLE_IN_PART: Final = Reason(
    "AvailableInPart",
    "surfaces when enough servers for the present step are ready and another one is in trouble; the next step needs it",
)
AUTOSCALER_BLIND: Final = Reason(
    "AutoscalerBlind",
    "surfaces when servers are ready and their autoscaler cannot read its metrics or cannot scale; the message is its "
    "own, the servers stay as many as they are, and no rollout is held for it",
)
SERVER_CRASHED: Final = Reason(
    "ServerCrashed", "surfaces when a server ended by itself; the message holds its last words"
)
PROGRESS_DEADLINE_EXCEEDED: Final = Reason(
    "ProgressDeadlineExceeded",
    "surfaces when a candidate was not available, or not routed, within the progress deadline",
)

# TrafficProgrammed
ROUTES_PENDING: Final = Reason("RoutesPending", "surfaces when the gateway has not yet accepted what the routes say")
ROUTES_REFUSED: Final = Reason(
    "RoutesRefused", "surfaces when the gateway refuses a route; the message is the gateway's"
)
MIRROR_NOT_SUPPORTED: Final = Reason(
    "MirrorNotSupported", "surfaces when the cluster's Gateway API does not know the percentage of a mirror"
)
SERVICE_PENDING: Final = Reason(
    "ServicePending", "surfaces when there is no gateway and the model's Service does not yet lead where it should"
)
GATEWAY_NOT_PROGRAMMED: Final = Reason(
    "GatewayNotProgrammed", "surfaces when the Gateway has no address or lacks a listener"
)
TRAFFIC_PROGRAMMED: Final = Reason("TrafficProgrammed", "surfaces when the gateway has accepted the wanted weights")
POOL_WITHOUT_PODS: Final = Reason(
    "PoolWithoutPods", "surfaces when an execution provider has no ready pod and the other ones answer its requests"
)
POOLS_WITHOUT_WEIGHT: Final = Reason(
    "PoolsWithoutWeight", "surfaces when the schedules leave no weight to any pool, so that they share evenly"
)
SPLIT_NOT_FOLLOWED: Final = Reason(
    "SplitNotFollowed",
    "surfaces when the requests of a step were split otherwise than the gateway has accepted, and chance does not "
    "explain it; nothing is held or rolled back for it",
)
DRAINING: Final = Reason(
    "Draining", "surfaces when servers taken out of the traffic keep running for requests that are under way"
)

# Promoted
STEP_STARTING: Final = Reason(
    "StepStarting", "surfaces when a step's weight was written and the gateway has yet to accept it"
)
STEP_RUNNING: Final = Reason("StepRunning", "surfaces when a step lasts and the candidate is watched")
ANALYSIS_HOLDS: Final = Reason(
    "AnalysisHolds", "surfaces when a step's time is over and its last verdict is not Pass; the message has the verdict"
)
SCALING: Final = Reason(
    "Scaling", "surfaces when a step has passed and the servers that the next one needs are not all ready"
)
PAUSED: Final = Reason("Paused", "surfaces when rollout.paused holds the candidate where it is")
FROZEN: Final = Reason(
    "Frozen",
    "surfaces when a freeze window is open and a candidate could start, advance or be promoted; says until when",
)
WAITING_FOR_PROMOTE_TOKEN: Final = Reason(
    "WaitingForPromoteToken",
    "surfaces when a step with pause has passed its analysis and goes on once promoteToken changes; no deadline counts",
)
BAKING: Final = Reason(
    "Baking", "surfaces when the candidate answers all requests and the revision before it is kept warm"
)
PROMOTED: Final = Reason("Promoted", "surfaces when the revision of the present spec became stable")
WENT_BACK: Final = Reason(
    "WentBack",
    "surfaces when the spec went back to a revision within rollbackWindow, which took all requests without steps",
)

# What takes a candidate out of the traffic.
ROLLED_BACK: Final = Reason("RolledBack", "surfaces when a candidate had traffic and was taken back; Promoted says why")
ANALYSIS_FAILED: Final = Reason("AnalysisFailed", "surfaces when a metric showed the candidate to be bad")
BAKE_FAILED: Final = Reason(
    "BakeFailed", "surfaces when a metric showed the candidate to be bad after its last step, in the bake"
)
ANALYSIS_INCONCLUSIVE: Final = Reason(
    "AnalysisInconclusive", "surfaces when the deadline passed and the verdict was Inconclusive"
)
ANALYSIS_NO_DATA: Final = Reason(
    "AnalysisNoData", "surfaces when the deadline passed and there were too few samples to judge"
)
ANALYSIS_PROVIDER_ERROR: Final = Reason(
    "AnalysisProviderError", "surfaces when the deadline passed and what should have measured did not answer"
)
CANDIDATE_CRASHED: Final = Reason(
    "CandidateCrashed", "surfaces when the candidate's servers crashed while they had traffic"
)
ABORTED: Final = Reason("Aborted", "surfaces when abortToken changed")
SUPERSEDED: Final = Reason("Superseded", "surfaces when the spec changed and wants another revision")

# What keeps the operator from writing.
NAME_CONFLICT: Final = Reason("NameConflict", "surfaces when an object of somebody else has the name that ours needs")
FORBIDDEN: Final = Reason(
    "Forbidden", "surfaces when RBAC does not let the operator do what it must; names verb and resource"
)
WRITE_REFUSED: Final = Reason(
    "WriteRefused", "surfaces when the API server refuses an object of ours; the message says which field"
)

ALL: Final[tuple[Reason, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Reason))
