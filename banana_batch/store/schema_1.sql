-- What version 1 of the state file had otherwise; the rest was as in schema.sql. Nothing of it is ever changed.

CREATE TABLE jobs (
  job INTEGER PRIMARY KEY,
  id TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'pending' CHECK
    (state IN ('pending', 'sending', 'paid', 'done', 'failed', 'in_doubt', 'lost', 'dropped')),
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

CREATE TABLE attempts (
  attempt INTEGER PRIMARY KEY,
  job INTEGER NOT NULL REFERENCES jobs,
  run INTEGER NOT NULL REFERENCES runs,
  kind INTEGER NOT NULL REFERENCES kinds,
  outcome TEXT NOT NULL DEFAULT 'sending' CHECK
    (outcome IN ('sending', 'not_sent', 'refused', 'paid', 'unpriced', 'doubt', 'charged', 'not_charged')),
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

CREATE TRIGGER jobs_move_along_the_table BEFORE UPDATE OF state ON jobs
WHEN OLD.state || '>' || NEW.state NOT IN (
  'pending>sending',
  'sending>pending', 'sending>failed', 'sending>paid', 'sending>in_doubt',
  'paid>done', 'paid>lost',
  'in_doubt>pending', 'in_doubt>paid', 'in_doubt>dropped',
  'failed>pending', 'dropped>pending',
  'done>paid')
BEGIN SELECT RAISE(ABORT, 'no such transition'); END;

CREATE TRIGGER attempts_settle_once BEFORE UPDATE OF outcome ON attempts
WHEN OLD.outcome || '>' || NEW.outcome NOT IN (
  'sending>not_sent', 'sending>refused', 'sending>paid', 'sending>unpriced', 'sending>doubt',
  'doubt>charged', 'doubt>not_charged', 'doubt>paid')
BEGIN SELECT RAISE(ABORT, 'an attempt is settled once'); END;
