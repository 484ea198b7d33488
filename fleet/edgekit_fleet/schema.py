"""The fleet's tables. Times are seconds since the epoch (UTC, float); digests are "sha256:<hex>".

devices          who is enrolled, what they last said; denormalised from `reported` for queries
revoked          certificate serials of the revocation list
tokens           one-time enrolment tokens, by hash
releases         published bundles
rollouts > rollout_groups > jobs         a job is one order to one device (deploy or back)
job_updates      what devices said about jobs; (device, seq) is the idempotency key
telemetry        one row per window; (device, boot, seq) is the idempotency key
outbox           messages to devices, written with the change that causes them, sent until acknowledged
events           what people follow (dashboard, `edgekit fleet watch`)
audit            hash-chained log of every change a person or a rule made
settings         one value per key
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1

metadata = MetaData()

devices = Table(
    "devices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("profile", String(64), nullable=False, default=""),
    Column("tags", JSON, nullable=False, default=dict),
    Column("serial", String(64), nullable=False),  # hex serial of the current certificate
    Column("fingerprint", String(64), nullable=False),  # hex SHA-256 of the certificate's DER
    Column("sealing_key_pem", Text, nullable=False),
    Column("revoked_at", Float),  # None: may talk to us
    Column("online", Boolean, nullable=False, default=False),
    Column("boot", String(64), nullable=False, default=""),  # of the agent start that spoke last
    Column("last_seen", Float),
    Column("reported", JSON),  # wire.Reported as an object, None before the first
    Column("reported_version", Integer, nullable=False, default=0),
    Column("release", String(200), nullable=False, default=""),  # "name:version" that it runs
    Column("bundle_digest", String(80), nullable=False, default=""),
    Column("variant", String(200), nullable=False, default=""),
    Column("architecture", String(40), nullable=False, default=""),
    Column("emulated", Boolean, nullable=False, default=False),
    Column("reported_counter", Integer, nullable=False, default=0),  # of the assignment it runs
    Column("counter", Integer, nullable=False, default=0),  # of the newest assignment we signed for it
    Column("created_at", Float, nullable=False),
)

revoked = Table(
    "revoked",
    metadata,
    Column("serial", String(64), primary_key=True),
    Column("device", String(64), nullable=False),
    Column("revoked_at", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("hash", String(64), primary_key=True),  # hex SHA-256 of the secret
    Column("device", String(64), nullable=False, default=""),  # "": the device may choose
    Column("profile", String(64), nullable=False, default=""),  # "": any
    Column("tags", JSON, nullable=False, default=dict),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
    Column("used_by", String(64), nullable=False, default=""),
)

releases = Table(
    "releases",
    metadata,
    Column("digest", String(80), primary_key=True),  # Bundle.digest: of index.json
    Column("name", String(100), nullable=False),
    Column("version", String(100), nullable=False),
    Column("file_sha256", String(64), nullable=False),  # of the stored file
    Column("size_bytes", Integer, nullable=False),
    Column("path", Text, nullable=False),  # relative to the state folder
    Column("signer", String(64), nullable=False),  # key id of the builder key that verified it
    Column("sealed_key", LargeBinary),  # content key, sealed to the fleet; None: not encrypted
    Column("variants", JSON, nullable=False),  # [{variant, profile, engine, precision, accuracy, ...}]
    Column("created_at", Float, nullable=False),
    UniqueConstraint("name", "version"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(200), nullable=False, default=""),
    Column("digest", String(80), ForeignKey("releases.digest"), nullable=False),
    Column("query", Text, nullable=False, default=""),
    Column("strategy", JSON, nullable=False),
    Column("state", String(32), nullable=False, index=True),
    Column("reason", Text, nullable=False, default=""),
    Column("start_at", Float, nullable=False, default=0.0),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("created_by", String(64), nullable=False, default=""),
)

rollout_groups = Table(
    "rollout_groups",
    metadata,
    Column("rollout", Integer, ForeignKey("rollouts.id"), primary_key=True),
    Column("position", Integer, primary_key=True),  # from 0
    Column("name", String(64), nullable=False),
    Column("state", String(32), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("soak_started_at", Float),
    Column("updated_at", Float, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),  # goes over the wire; unguessable not needed, unique is
    Column("rollout", Integer, ForeignKey("rollouts.id"), nullable=False),
    Column("position", Integer, nullable=False),  # of its group
    Column("device", String(64), ForeignKey("devices.id"), nullable=False),
    Column("kind", String(8), nullable=False),  # "deploy" or "back"
    Column("digest", String(80), nullable=False),  # what it brings
    Column("previous", String(80), nullable=False, default=""),  # digest that ran when it was told
    Column("state", String(16), nullable=False),  # wire.JobState
    Column("stage", String(16), nullable=False, default=""),
    Column("code", String(64), nullable=False, default=""),
    Column("message", Text, nullable=False, default=""),
    Column("counter", Integer, nullable=False, default=0),  # of its assignment, 0 before notification
    Column("assignment", Text, nullable=False, default=""),  # DSSE envelope, "" before notification
    Column("acknowledged", Boolean, nullable=False, default=False),
    Column("notified_at", Float),
    Column("deadline_at", Float),
    Column("ended_at", Float),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("rollout", "device", "kind"),
    Index("jobs_by_device", "device", "created_at"),
)

job_updates = Table(
    "job_updates",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("job", String(64), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("stage", String(16), nullable=False, default=""),
    Column("code", String(64), nullable=False, default=""),
    Column("message", Text, nullable=False, default=""),
    Column("at", String(40), nullable=False, default=""),  # the device's own clock, as it said
    Column("received_at", Float, nullable=False),
)

telemetry = Table(
    "telemetry",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("boot", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("received_at", Float, nullable=False),
    Column("start", String(40), nullable=False, default=""),  # the device's own clock
    Column("window_s", Float, nullable=False),
    Column("windows", Integer, nullable=False),
    Column("release", String(200), nullable=False, default=""),
    Column("values", JSON, nullable=False),
    Column("latency_buckets", JSON, nullable=False),
    Column("classes", JSON, nullable=False),
    Index("telemetry_by_time", "received_at", "device"),
    Index("telemetry_by_device", "device", "received_at"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("topic", String(300), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("retain", Boolean, nullable=False, default=False),
    Column("created_at", Float, nullable=False),
    # Acknowledged by the broker; kept a while longer, because the broker's own disk lags behind.
    Column("sent_at", Float),
    sqlite_autoincrement=True,
)

retained = Table(
    "retained",
    metadata,
    Column("topic", String(300), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("kind", String(40), nullable=False),  # device, enrolled, release, rollout, group, job, telemetry
    Column("device", String(64), nullable=False, default=""),
    Column("rollout", Integer),
    Column("text", Text, nullable=False, default=""),
    Column("data", JSON, nullable=False, default=dict),
    sqlite_autoincrement=True,
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1, 2, 3, ... without gaps
    Column("at", Float, nullable=False),
    Column("actor", String(64), nullable=False),  # "admin", "engine", "device:<id>", "cli"
    Column("action", String(64), nullable=False),
    Column("subject", String(200), nullable=False, default=""),
    Column("detail", Text, nullable=False, default="{}"),  # canonical JSON, as hashed
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

settings = Table(
    "settings",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", JSON, nullable=False),
)
