-- The state and the ledger of one batch.
--
-- Rule 1: nothing is deleted, and an attempt is settled once: triggers refuse all else.
-- Rule 2: a job moves only along lifecycle.TRANSITIONS (a test holds the two equal).
-- Rule 3: amounts are integer millionths of a credit, times integer microseconds since the epoch, UTC.
-- Rule 4: the sums in `runs` and `kinds` are kept by the same triggers that see each settlement.
-- Rule 5: what is asked of each row is asked with `=`: for a longer list in IN, SQLite fills a table anew each time.

PRAGMA application_id = 1111576130;  -- 'BANB'
PRAGMA user_version = 2;

CREATE TABLE batch (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
  run INTEGER PRIMARY KEY,
  pid INTEGER NOT NULL,
  host TEXT NOT NULL,
  started_us INTEGER NOT NULL,
  ended_us INTEGER,
  exit INTEGER,
  reason TEXT,
  budget INTEGER,
  reserved INTEGER NOT NULL DEFAULT 0,
  spent INTEGER NOT NULL DEFAULT 0,
  at_risk INTEGER NOT NULL DEFAULT 0,
  wasted INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What a price depends on. `highest` is null until an answer states a usable price.
CREATE TABLE kinds (
  kind INTEGER PRIMARY KEY,
  model TEXT NOT NULL,
  image_size TEXT NOT NULL,
  highest INTEGER,
  answers INTEGER NOT NULL DEFAULT 0,
  spent INTEGER NOT NULL DEFAULT 0,
  UNIQUE (model, image_size)
) STRICT;

-- `job` is the index that users see. `position` is the job's place in the manifest now, null: not in it.
-- `request` is the wire body; `refs` names local files in it; `unsent` is what the row said and the wire leaves out.
-- `origin` is the job that a redo copied; `twin` the job whose image this one shares.
CREATE TABLE jobs (
  job INTEGER PRIMARY KEY,
  id TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'pending' CHECK
    (state = 'pending' OR state = 'sending' OR state = 'paid' OR state = 'done' OR state = 'failed'
      OR state = 'in_doubt' OR state = 'lost' OR state = 'dropped'),
  position INTEGER,
  key BLOB NOT NULL,
  kind INTEGER NOT NULL REFERENCES kinds,
  stem TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0,
  attempt INTEGER REFERENCES attempts,
  origin INTEGER REFERENCES jobs,
  twin INTEGER REFERENCES jobs,
  request TEXT NOT NULL,
  refs TEXT,
  unsent TEXT,
  meta TEXT
) STRICT;
CREATE UNIQUE INDEX jobs_by_id ON jobs (id);
CREATE INDEX jobs_by_state ON jobs (state, position);
CREATE INDEX jobs_by_twin ON jobs (twin) WHERE twin IS NOT NULL;
CREATE INDEX jobs_by_origin ON jobs (origin) WHERE origin IS NOT NULL;

-- One row a paid request, written before its first byte: the ledger.
-- `ceiling` 1: no price of the kind was known when `reserved` was set.
CREATE TABLE attempts (
  attempt INTEGER PRIMARY KEY,
  job INTEGER NOT NULL REFERENCES jobs,
  run INTEGER NOT NULL REFERENCES runs,
  kind INTEGER NOT NULL REFERENCES kinds,
  outcome TEXT NOT NULL DEFAULT 'sending' CHECK
    (outcome = 'sending' OR outcome = 'paid' OR outcome = 'refused' OR outcome = 'doubt' OR outcome = 'unpriced'
      OR outcome = 'not_sent' OR outcome = 'charged' OR outcome = 'not_charged'),
  reserved INTEGER NOT NULL CHECK (reserved >= 0),
  ceiling INTEGER NOT NULL,
  credits INTEGER CHECK (credits >= 0),
  wasted INTEGER NOT NULL DEFAULT 0,
  sent_us INTEGER NOT NULL,
  latency_s REAL,
  status INTEGER,
  class TEXT,
  message TEXT,
  settled_by TEXT,
  answer BLOB
) STRICT;
CREATE INDEX attempts_at_ceiling ON attempts (kind) WHERE ceiling = 1;

CREATE TABLE images (
  job INTEGER PRIMARY KEY REFERENCES jobs,
  attempt INTEGER NOT NULL REFERENCES attempts,
  image_url TEXT NOT NULL,
  path TEXT,
  bytes INTEGER,
  sha256 BLOB,
  width INTEGER,
  height INTEGER,
  content_type TEXT,
  warning TEXT,
  done_us INTEGER,
  tries INTEGER NOT NULL DEFAULT 0,
  failed_us INTEGER,
  damaged_sha256 TEXT,
  error_class TEXT,
  error_message TEXT
) STRICT;

CREATE TRIGGER jobs_are_born_pending BEFORE INSERT ON jobs WHEN NEW.state <> 'pending'
BEGIN SELECT RAISE(ABORT, 'a job starts as pending'); END;

CREATE TRIGGER jobs_move_along_the_table BEFORE UPDATE OF state ON jobs
WHEN NOT CASE OLD.state
  WHEN 'pending' THEN NEW.state = 'sending'
  WHEN 'sending' THEN NEW.state = 'paid' OR NEW.state = 'in_doubt' OR NEW.state = 'pending' OR NEW.state = 'failed'
  WHEN 'paid' THEN NEW.state = 'done' OR NEW.state = 'lost'
  WHEN 'in_doubt' THEN NEW.state = 'pending' OR NEW.state = 'paid' OR NEW.state = 'dropped'
  WHEN 'failed' THEN NEW.state = 'pending'
  WHEN 'dropped' THEN NEW.state = 'pending'
  WHEN 'done' THEN NEW.state = 'paid'
  ELSE 0 END
BEGIN SELECT RAISE(ABORT, 'no such transition'); END;

CREATE TRIGGER jobs_stay BEFORE DELETE ON jobs
BEGIN SELECT RAISE(ABORT, 'a job is never deleted'); END;

CREATE TRIGGER attempts_stay BEFORE DELETE ON attempts
BEGIN SELECT RAISE(ABORT, 'an attempt is never deleted'); END;

CREATE TRIGGER attempts_are_born_open BEFORE INSERT ON attempts WHEN NEW.outcome <> 'sending'
BEGIN SELECT RAISE(ABORT, 'an attempt starts as sending'); END;

CREATE TRIGGER attempts_settle_once BEFORE UPDATE OF outcome ON attempts
WHEN NOT CASE OLD.outcome
  WHEN 'sending' THEN NEW.outcome = 'paid' OR NEW.outcome = 'doubt' OR NEW.outcome = 'unpriced'
    OR NEW.outcome = 'refused' OR NEW.outcome = 'not_sent'
  WHEN 'doubt' THEN NEW.outcome = 'charged' OR NEW.outcome = 'not_charged' OR NEW.outcome = 'paid'
  ELSE 0 END
BEGIN SELECT RAISE(ABORT, 'an attempt is settled once'); END;

CREATE TRIGGER attempts_keep_their_story BEFORE UPDATE OF job, run, kind, sent_us ON attempts
BEGIN SELECT RAISE(ABORT, 'an attempt keeps its job, run, kind and time'); END;

CREATE TRIGGER attempts_keep_their_credits BEFORE UPDATE OF credits ON attempts
WHEN OLD.credits IS NOT NULL AND NEW.credits IS NOT OLD.credits
BEGIN SELECT RAISE(ABORT, 'credits are stated once'); END;

CREATE TRIGGER attempts_reserve AFTER INSERT ON attempts
BEGIN
  UPDATE runs SET reserved = reserved + NEW.reserved, attempts = attempts + 1 WHERE run = NEW.run;
END;

CREATE TRIGGER attempts_sum AFTER UPDATE OF outcome, reserved, wasted ON attempts
BEGIN
  UPDATE runs SET
    reserved = reserved
      - iif(OLD.outcome = 'sending', OLD.reserved, 0)
      + iif(NEW.outcome = 'sending', NEW.reserved, 0),
    at_risk = at_risk
      - iif(OLD.outcome IN ('doubt', 'unpriced'), OLD.reserved, 0)
      + iif(NEW.outcome IN ('doubt', 'unpriced'), NEW.reserved, 0),
    spent = spent
      - iif(OLD.outcome IN ('paid', 'charged'), OLD.credits, 0)
      + iif(NEW.outcome IN ('paid', 'charged'), NEW.credits, 0),
    wasted = wasted
      - iif(OLD.wasted AND OLD.outcome IN ('paid', 'charged'), OLD.credits, 0)
      + iif(NEW.wasted AND NEW.outcome IN ('paid', 'charged'), NEW.credits, 0)
  WHERE run = NEW.run;
END;

CREATE TRIGGER attempts_price AFTER UPDATE OF outcome ON attempts WHEN NEW.outcome = 'paid'
BEGIN
  UPDATE kinds SET answers = answers + 1, spent = spent + NEW.credits,
    highest = max(ifnull(highest, NEW.credits), NEW.credits)
  WHERE kind = NEW.kind;
END;

-- What `verify` holds the kept sums against.
CREATE VIEW ledger AS
SELECT run, kind,
  count(*) AS attempts,
  sum(iif(outcome = 'sending', reserved, 0)) AS reserved,
  sum(iif(outcome IN ('paid', 'charged'), credits, 0)) AS spent,
  sum(iif(outcome IN ('doubt', 'unpriced'), reserved, 0)) AS at_risk,
  sum(iif(wasted AND outcome IN ('paid', 'charged'), credits, 0)) AS wasted
FROM attempts GROUP BY run, kind;
