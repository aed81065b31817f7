"""The schema of the history, as numbered steps that only ever grow.

A released step is never edited: a change is a new step, with a test that starts from the version before.
Raw measurements are columns; every rate lives in a view, so a formula can be mended without touching data.
Every table has an integer key (what FTS5 and Datasette want) and, where rows travel between machines, a text
`id` that is unique everywhere: sortable by time for what happened, a content hash for what a number depends on.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

APPLICATION_ID = 0x42417265
"""`PRAGMA application_id`: how `file` and we tell our database from another program's ("BAre")."""

migrations = Migrations("backend_arena")


@migrations(name="001_tables")
def tables(db: Database) -> None:
    """What happened (conversations, turns, runs, votes) and what it depended on (machines, environments, targets)."""
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.executescript(
        """
        CREATE TABLE machines (
            n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
            name TEXT, facts TEXT NOT NULL, first_seen_at TEXT NOT NULL
        );
        CREATE TABLE environments (
            n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
            versions TEXT NOT NULL, details TEXT NOT NULL, first_seen_at TEXT NOT NULL
        );
        CREATE TABLE targets (
            n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
            engine TEXT NOT NULL, device TEXT NOT NULL, precision TEXT NOT NULL, model TEXT NOT NULL,
            revision TEXT, recipe_sha256 TEXT, recipe TEXT
        );
        CREATE INDEX targets_model ON targets (model, engine, device, precision);
        CREATE TABLE conversations (
            n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
            title TEXT, owner TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
            pinned INTEGER NOT NULL DEFAULT 0, deleted_at TEXT, imported_from TEXT, exact TEXT
        );
        CREATE INDEX conversations_listed ON conversations (pinned, updated_at) WHERE deleted_at IS NULL;
        CREATE TABLE turns (
            n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
            conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            created_at TEXT NOT NULL, mode TEXT NOT NULL, settings TEXT NOT NULL,
            prompt TEXT, system_prompt TEXT, replaces_turn_id TEXT, exact TEXT
        );
        CREATE INDEX turns_conversation ON turns (conversation_id, id);
        CREATE TABLE runs (
            n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
            turn_id TEXT NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
            panel INTEGER NOT NULL, attempt INTEGER NOT NULL,
            target_id TEXT NOT NULL REFERENCES targets (id),
            machine_id TEXT NOT NULL REFERENCES machines (id),
            environment_id TEXT REFERENCES environments (id),
            contended INTEGER NOT NULL, status TEXT NOT NULL, writer TEXT,
            started_at TEXT NOT NULL, finished_at TEXT,
            text TEXT, finish_reason TEXT, warning TEXT,
            error_kind TEXT, error_message TEXT, error_remedy TEXT, error_details TEXT, exit_code INTEGER,
            prompt_tokens INTEGER, cached_prompt_tokens INTEGER, output_tokens INTEGER, prompt_sha256 TEXT,
            first_token_us INTEGER, last_token_us INTEGER, itl_median_us INTEGER, itl_p95_us INTEGER,
            token_offsets BLOB, total_s REAL, felt_ttft_s REAL, load_s REAL, compile_s REAL, warmup_s REAL,
            peak_rss_bytes INTEGER, exact TEXT
        );
        -- Holds all that the filters ask for, so that they need not read the rows with their texts.
        CREATE INDEX runs_turn ON runs (turn_id, target_id, machine_id, status, contended, started_at);
        CREATE INDEX runs_target ON runs (target_id, started_at);
        CREATE INDEX runs_running ON runs (writer) WHERE status = 'running';
        CREATE TABLE votes (
            turn_id TEXT PRIMARY KEY REFERENCES turns (id) ON DELETE CASCADE,
            winner TEXT NOT NULL, winner_run_id TEXT, blind INTEGER NOT NULL, created_at TEXT NOT NULL
        );
        CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
        """
    )


@migrations(name="002_search")
def search(db: Database) -> None:
    """Full-text search over prompts and replies, kept right by triggers whoever writes.

    The index holds no second copy of the text. A growing reply is indexed once, when it stops growing.
    """
    for table, column, ready in (
        ("turns", "prompt", "{}.prompt IS NOT NULL"),
        ("runs", "text", "{0}.text IS NOT NULL AND {0}.status <> 'running'"),
    ):
        add = f"INSERT INTO {table}_fts (rowid, {column}) VALUES (new.n, new.{column});"
        drop = (
            f"INSERT INTO {table}_fts ({table}_fts, rowid, {column}) VALUES ('delete', old.n, old.{column});"
        )
        update_of = column if table == "turns" else "text, status"
        db.executescript(
            f"""
            CREATE VIRTUAL TABLE {table}_fts USING fts5(
                {column}, content="{table}", content_rowid="n",
                tokenize='unicode61 remove_diacritics 2', prefix='2 3'
            );
            CREATE TRIGGER {table}_fts_insert AFTER INSERT ON {table} WHEN {ready.format("new")}
            BEGIN {add} END;
            CREATE TRIGGER {table}_fts_delete AFTER DELETE ON {table} WHEN {ready.format("old")}
            BEGIN {drop} END;
            CREATE TRIGGER {table}_fts_drop AFTER UPDATE OF {update_of} ON {table} WHEN {ready.format("old")}
            BEGIN {drop} END;
            CREATE TRIGGER {table}_fts_add AFTER UPDATE OF {update_of} ON {table} WHEN {ready.format("new")}
            BEGIN {add} END;
            INSERT INTO {table}_fts (rowid, {column})
                SELECT n, {column} FROM {table} WHERE {ready.format(table)};
            """
        )


@migrations(name="003_views")
def views(db: Database) -> None:
    """Every derived figure, and answers to the questions most people ask."""
    run_metrics = _RUN_METRICS.format(computed_whole="coalesce(r.cached_prompt_tokens, 0) = 0")
    db.executescript(run_metrics + _TOKEN_TIMES + _LATEST + _MEDIANS)


@migrations(name="004_prefill_rate_only_when_known")
def prefill_rate_only_when_known(db: Database) -> None:
    """A prompt of which an unknown part came from a cache has no prefill rate."""
    db.executescript(
        "DROP VIEW run_metrics;" + _RUN_METRICS.format(computed_whole="r.cached_prompt_tokens = 0")
    )


@migrations(name="005_panels_from_one")
def panels_from_one(db: Database) -> None:
    """`app.py run` counted its panels from 0, the page from 1: now all count from 1, votes included.

    A whole conversation moves up together, so that each panel keeps what it has heard. Where panel 6 is in use too,
    panel 0 takes a number that is free.
    """
    of_it = "turn_id IN (SELECT u.id FROM turns u JOIN from_zero z USING (conversation_id) WHERE {})"
    moves_up = of_it.format("z.highest < 6")
    stays = of_it.format("z.highest >= 6")
    free = """(
        SELECT min(n) FROM (SELECT 1 AS n UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 7)
        WHERE n NOT IN (
            SELECT r.panel FROM runs r JOIN turns u ON u.id = r.turn_id WHERE u.conversation_id = (
                SELECT conversation_id FROM turns WHERE id = {}.turn_id
            )
        )
    )"""
    for step in (
        """
        CREATE TEMP TABLE from_zero AS
            SELECT u.conversation_id, max(r.panel) AS highest FROM runs r JOIN turns u ON u.id = r.turn_id
            GROUP BY u.conversation_id HAVING min(r.panel) = 0
        """,
        f"UPDATE votes SET winner = CAST(winner + 1 AS TEXT) WHERE winner GLOB '[0-9]' AND {moves_up}",
        f"UPDATE votes SET winner = CAST({free.format('votes')} AS TEXT) WHERE winner = '0' AND {stays}",
        f"UPDATE runs SET panel = panel + 1 WHERE {moves_up}",
        f"CREATE TEMP TABLE moved AS SELECT n, {free.format('runs')} AS panel FROM runs WHERE panel = 0 AND {stays}",
        "UPDATE runs SET panel = (SELECT panel FROM moved WHERE n = runs.n) WHERE n IN (SELECT n FROM moved)",
        "DROP TABLE moved",
        "DROP TABLE from_zero",
    ):
        db.execute(step)


@migrations(name="006_thoughts")
def thoughts(db: Database) -> None:
    """What a model thought before it answered, apart from the answer; and what was told about the prompt."""
    for column in (
        *("reasoning TEXT", "note TEXT", "reasoning_tokens INTEGER", "answer_tokens INTEGER"),
        *("first_reasoning_us INTEGER", "first_answer_us INTEGER"),
    ):
        db.execute(f"ALTER TABLE runs ADD COLUMN {column}")
    _widen_run_metrics(
        db,
        "r.reasoning_tokens, r.answer_tokens, r.first_reasoning_us / 1e6 AS first_reasoning_s, "
        "r.first_answer_us / 1e6 AS first_answer_s, "
        "CASE WHEN coalesce(r.answer_tokens, 1) > 0 THEN r.last_token_us / 1e6 END AS answer_s",
    )


def _widen_run_metrics(db: Database, columns: str) -> None:
    """Add columns to the view `run_metrics`, whatever it has by now."""
    (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'run_metrics'").fetchone()
    db.execute("DROP VIEW run_metrics")
    db.execute(sql.replace("\nFROM runs r\n", f",\n    {columns}\nFROM runs r\n", 1))


@migrations(name="007_disturbance_and_placement")
def disturbance_and_placement(db: Database) -> None:
    """Stamps decided when a run ends, with their numbers, and where it really ran.

    Rows from before keep what they say and are marked `stamp_rule = 'start'`: their stamp knew only what went on when
    the run began. Medians leave out what other programs disturbed and what ran elsewhere than it claims, and keep the
    two rules apart.
    """
    for column in (
        "stamp_rule TEXT NOT NULL DEFAULT 'start'",
        *("disturbed INTEGER", "other_load TEXT", "placement TEXT", "placement_badge TEXT"),
    ):
        db.execute(f"ALTER TABLE runs ADD COLUMN {column}")
    (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'run_metrics'").fetchone()
    for view in ("latest_runs", "median_metrics", "run_metrics"):
        db.execute(f"DROP VIEW {view}")
    for view in (sql.replace("r.contended,", _STAMPS, 1), _LATEST_007, _MEDIANS_007):
        db.execute(view)


@migrations(name="010_servers_and_api")
def servers_and_api(db: Database) -> None:
    """Whose clock took a run's times, what a server said itself, and turns that came by the API.

    Where only pieces of text were seen, the first and the last of them stand in for the tokens, and the rate rests on
    the server's count (`rate_from_counts` in protocol.RunMetrics).
    """
    for table, column in (
        *(("runs", "clock TEXT"), ("runs", "piece_offsets BLOB"), ("runs", "server TEXT")),
        *(("turns", "via TEXT"), ("turns", "earlier TEXT")),
    ):
        db.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'run_metrics'").fetchone()
    seen = "length(r.token_offsets) / 5"
    counted = f"nullif(coalesce({seen}, CASE WHEN r.clock = 'client' THEN r.output_tokens END) - 1, 0)"
    sql = sql.replace(f"({seen} - 1)", counted, 1)
    db.execute("DROP VIEW run_metrics")
    db.execute(sql.replace("\nFROM runs r\n", ",\n    r.clock, t.via\nFROM runs r\n", 1))


_RUN_METRICS = """
CREATE VIEW run_metrics AS
SELECT
    r.n, r.id AS run_id, r.turn_id, t.conversation_id, r.panel, r.attempt,
    g.engine, g.device, g.precision, g.model,
    m.name AS machine, r.status, r.contended, t.mode,
    r.started_at, r.finish_reason, r.error_kind,
    r.prompt_tokens, r.cached_prompt_tokens, r.output_tokens,
    r.first_token_us / 1e6 AS ttft_s,
    r.felt_ttft_s,
    CASE WHEN r.first_token_us > 0 AND r.prompt_tokens > 0 AND {computed_whole}
        THEN r.prompt_tokens * 1e6 / r.first_token_us END AS prefill_tok_s,
    CASE WHEN r.last_token_us > r.first_token_us
        THEN (length(r.token_offsets) / 5 - 1) * 1e6 / (r.last_token_us - r.first_token_us) END AS decode_tok_s,
    r.itl_median_us / 1e6 AS itl_median_s,
    r.itl_p95_us / 1e6 AS itl_p95_s,
    r.total_s, r.load_s, r.compile_s, r.warmup_s, r.peak_rss_bytes,
    r.prompt_sha256, g.revision, g.recipe_sha256, r.target_id, r.machine_id, r.environment_id
FROM runs r
JOIN turns t ON t.id = r.turn_id
JOIN conversations c ON c.id = t.conversation_id AND c.deleted_at IS NULL
JOIN targets g ON g.id = r.target_id
JOIN machines m ON m.id = r.machine_id;
"""

# One row per output token, unpacked by SQL alone: five big-endian bytes of microseconds each.
_BYTES = "0123456789ABCDEF"
_DIGITS = " + ".join(
    f"(instr('{_BYTES}', substr(hex(substr(r.token_offsets, 5 * i + 1, 5)), {k + 1}, 1)) - 1) * {16 ** (9 - k)}"
    for k in range(10)
)
_TOKEN_TIMES = f"""
CREATE VIEW token_times AS
WITH RECURSIVE numbers (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i < 65535)
SELECT r.id AS run_id, i AS token, ({_DIGITS}) / 1e6 AS offset_s
FROM runs r JOIN numbers ON i < length(r.token_offsets) / 5;
"""

_LATEST = """
CREATE VIEW latest_runs AS
SELECT engine, device, precision, model, machine, contended, started_at, ttft_s, decode_tok_s, prefill_tok_s,
    itl_median_s, itl_p95_s, peak_rss_bytes, output_tokens, run_id
FROM (
    SELECT *, row_number() OVER (
        PARTITION BY engine, device, precision, model, machine, contended ORDER BY started_at DESC, n DESC
    ) AS place
    FROM run_metrics WHERE status = 'finished'
)
WHERE place = 1;
"""

_MEDIANS = """
CREATE VIEW median_metrics AS
WITH ranked AS (
    SELECT engine, device, precision, model, machine, contended, decode_tok_s, ttft_s, prefill_tok_s,
        peak_rss_bytes, started_at, target_id, machine_id, environment_id,
        row_number() OVER (kind ORDER BY decode_tok_s) AS decode_place,
        count(decode_tok_s) OVER kind AS decode_count,
        row_number() OVER (kind ORDER BY ttft_s) AS ttft_place,
        count(ttft_s) OVER kind AS ttft_count,
        row_number() OVER (kind ORDER BY prefill_tok_s) AS prefill_place,
        count(prefill_tok_s) OVER kind AS prefill_count,
        count(*) OVER kind AS runs
    FROM run_metrics WHERE status = 'finished'
    WINDOW kind AS (PARTITION BY target_id, machine_id, environment_id, contended)
)
SELECT engine, device, precision, model, machine, contended, max(runs) AS runs,
    avg(CASE WHEN decode_place - (runs - decode_count) IN ((decode_count + 1) / 2, (decode_count + 2) / 2)
        THEN decode_tok_s END) AS decode_tok_s,
    min(decode_tok_s) AS decode_tok_s_min, max(decode_tok_s) AS decode_tok_s_max,
    avg(CASE WHEN ttft_place - (runs - ttft_count) IN ((ttft_count + 1) / 2, (ttft_count + 2) / 2)
        THEN ttft_s END) AS ttft_s,
    min(ttft_s) AS ttft_s_min, max(ttft_s) AS ttft_s_max,
    avg(CASE WHEN prefill_place - (runs - prefill_count) IN ((prefill_count + 1) / 2, (prefill_count + 2) / 2)
        THEN prefill_tok_s END) AS prefill_tok_s,
    max(peak_rss_bytes) AS peak_rss_bytes,
    min(started_at) AS first_run_at, max(started_at) AS last_run_at,
    target_id, machine_id, environment_id
FROM ranked GROUP BY target_id, machine_id, environment_id, contended;
"""

_STAMPS = """r.contended, r.disturbed,
    r.contended = 0 AND (r.disturbed = 0 OR (r.disturbed IS NULL AND r.stamp_rule = 'start'))
        AND r.placement_badge IS NOT 'contradicted' AS alone,
    r.stamp_rule, r.placement_badge,"""

_LATEST_007 = """
CREATE VIEW latest_runs AS
SELECT engine, device, precision, model, machine, contended, disturbed, alone, stamp_rule, placement_badge,
    started_at, ttft_s, decode_tok_s, prefill_tok_s,
    itl_median_s, itl_p95_s, peak_rss_bytes, output_tokens, run_id
FROM (
    SELECT *, row_number() OVER (
        PARTITION BY engine, device, precision, model, machine, alone ORDER BY started_at DESC, n DESC
    ) AS place
    FROM run_metrics WHERE status = 'finished'
)
WHERE place = 1;
"""

_MEDIANS_007 = """
CREATE VIEW median_metrics AS
WITH ranked AS (
    SELECT engine, device, precision, model, machine, contended, stamp_rule, decode_tok_s, ttft_s, prefill_tok_s,
        peak_rss_bytes, started_at, target_id, machine_id, environment_id,
        row_number() OVER (kind ORDER BY decode_tok_s) AS decode_place,
        count(decode_tok_s) OVER kind AS decode_count,
        row_number() OVER (kind ORDER BY ttft_s) AS ttft_place,
        count(ttft_s) OVER kind AS ttft_count,
        row_number() OVER (kind ORDER BY prefill_tok_s) AS prefill_place,
        count(prefill_tok_s) OVER kind AS prefill_count,
        count(*) OVER kind AS runs
    FROM run_metrics WHERE status = 'finished' AND disturbed IS NOT 1 AND placement_badge IS NOT 'contradicted'
    WINDOW kind AS (PARTITION BY target_id, machine_id, environment_id, contended, stamp_rule)
)
SELECT engine, device, precision, model, machine, contended, stamp_rule, max(runs) AS runs,
    avg(CASE WHEN decode_place - (runs - decode_count) IN ((decode_count + 1) / 2, (decode_count + 2) / 2)
        THEN decode_tok_s END) AS decode_tok_s,
    min(decode_tok_s) AS decode_tok_s_min, max(decode_tok_s) AS decode_tok_s_max,
    avg(CASE WHEN ttft_place - (runs - ttft_count) IN ((ttft_count + 1) / 2, (ttft_count + 2) / 2)
        THEN ttft_s END) AS ttft_s,
    min(ttft_s) AS ttft_s_min, max(ttft_s) AS ttft_s_max,
    avg(CASE WHEN prefill_place - (runs - prefill_count) IN ((prefill_count + 1) / 2, (prefill_count + 2) / 2)
        THEN prefill_tok_s END) AS prefill_tok_s,
    max(peak_rss_bytes) AS peak_rss_bytes,
    min(started_at) AS first_run_at, max(started_at) AS last_run_at,
    target_id, machine_id, environment_id
FROM ranked GROUP BY target_id, machine_id, environment_id, contended, stamp_rule;
"""


@migrations(name="008_measurements")
def measurements(db: Database) -> None:
    """Fair measurements (engines/measure), and the settings that the tuner found for a target on this machine.

    A measurement's repeats are runs of a conversation of its own, so that History, Trends and exports have them;
    `document` holds all of it, raw, as docs/measure.md describes. Tunings belong to this machine and do not travel.
    """
    db.executescript(
        """
        CREATE TABLE measurements (
            n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
            conversation_id TEXT REFERENCES conversations (id) ON DELETE CASCADE,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
            contract TEXT NOT NULL, suite TEXT NOT NULL, model TEXT NOT NULL, status TEXT NOT NULL,
            writer TEXT, imported_from TEXT, document TEXT NOT NULL
        );
        CREATE INDEX measurements_listed ON measurements (created_at);
        CREATE INDEX measurements_conversation ON measurements (conversation_id);
        CREATE TABLE tunings (
            engine TEXT NOT NULL, device TEXT NOT NULL, precision TEXT NOT NULL, model TEXT NOT NULL,
            settings TEXT NOT NULL, found_at TEXT NOT NULL, why TEXT,
            PRIMARY KEY (engine, device, precision, model)
        );
        CREATE VIEW measured_runs AS
        SELECT json_extract(t.settings, '$.measurement') AS measurement_id,
            json_extract(t.settings, '$.case') AS case_name, json_extract(t.settings, '$.round') AS round, x.*
        FROM run_metrics x JOIN turns t ON t.id = x.turn_id
        WHERE json_extract(t.settings, '$.measurement') IS NOT NULL;
        """
    )


@migrations(name="011_reply_ids")
def reply_ids(db: Database) -> None:
    """The token ids of each reply, as JSON: what a later start of the app gives the model back to carry it on.

    Its text is not enough: other ids may spell the same, and half a character has no text at all.
    """
    db.execute("ALTER TABLE runs ADD COLUMN reply_ids TEXT")


@migrations(name="012_tunings_per_job")
def tunings_per_job(db: Database) -> None:
    """One tuning per target and job (long answers, long prompts), and which of them is in use; at most one is.

    What was kept so far was found for long answers, or taken as it was measured, and is in use.
    """
    db.executescript(
        """
        ALTER TABLE tunings RENAME TO tunings_008;
        CREATE TABLE tunings (
            engine TEXT NOT NULL, device TEXT NOT NULL, precision TEXT NOT NULL, model TEXT NOT NULL,
            job TEXT NOT NULL, settings TEXT NOT NULL, found_at TEXT NOT NULL, why TEXT,
            in_use INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY (engine, device, precision, model, job)
        );
        CREATE UNIQUE INDEX tunings_in_use ON tunings (engine, device, precision, model) WHERE in_use;
        INSERT INTO tunings
        SELECT engine, device, precision, model, iif(why = 'as measured', 'measured', 'decode'), settings, found_at,
            why, 1
        FROM tunings_008;
        DROP TABLE tunings_008;
        """
    )


@migrations(name="013_tunings_chosen")
def tunings_chosen(db: Database) -> None:
    """Whether a person chose the tuning that is in use, rather than that it was the last to be found.

    What was in use against the rule (long answers go first) can only have been chosen.
    """
    db.executescript(
        """
        ALTER TABLE tunings ADD COLUMN chosen INTEGER NOT NULL DEFAULT 0;
        UPDATE tunings SET chosen = 1 WHERE in_use AND (job = 'measured' OR job = 'prefill' AND EXISTS (
            SELECT 1 FROM tunings o WHERE o.job = 'decode' AND (o.engine, o.device, o.precision, o.model)
                = (tunings.engine, tunings.device, tunings.precision, tunings.model)));
        """
    )
