//! The end of jobs that were worked.

use atomic_phases::database::Database;
use atomic_phases::queue::work::JobLease;
use uuid::Uuid;

use super::{Case, Stage, WaitsFor, refusal};
use crate::support::app::TestApp;
use crate::support::receipts::{SentReceipt, finish};

/// A job that was worked, and the receipt that it sent.
pub(super) struct Finishes {
    lease: JobLease,
    sent: Option<SentReceipt>,
    good: bool,
    refused: bool,
}

impl Case for Finishes {
    const COVERS: &'static str = "queue/work.rs: Finish";
    const WAITS_FOR: WaitsFor = WaitsFor::Row("jobs", "staged_id");
    const WRITES: Option<(&'static str, &'static str)> = Some(("jobs", "staged_id"));

    async fn caller(stage: &Stage, n: usize) -> Self {
        let token = Uuid::new_v4();
        let sql = "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, lease_token)
                   SELECT nextval('staged_jobs_id_seq'), 'n', '{}', now(), $1 RETURNING staged_id";
        let job_id: i64 = stage.app.query(sql, &[&token]).await[0].get(0);
        let lease = match n % 4 {
            0 | 1 => JobLease { job_id, token },
            2 => JobLease { job_id, token: Uuid::new_v4() },
            _ => JobLease { job_id: -job_id, token },
        };
        let sent = SentReceipt { ride_id: 1000 + job_id, message_id: format!("<{token}@rides.test>") };
        Self { lease, sent: (n % 4 != 1).then_some(sent), good: n % 4 < 2, refused: false }
    }

    async fn refused(stage: &Stage) -> Option<Self> {
        let mut caller = Self::caller(stage, 0).await;
        caller.sent = caller.sent.map(|sent| SentReceipt { message_id: "\0".to_owned(), ..sent });
        Some(Self { refused: true, ..caller })
    }

    async fn call(&self, database: &Database) -> String {
        match finish(database, self.lease, self.sent.clone()).await {
            Ok(finished) => format!("finished {finished}"),
            Err(error) => refusal(&error),
        }
    }

    fn expected(&self) -> String {
        if self.refused { "refused".to_owned() } else { format!("finished {}", self.good) }
    }

    fn locks(&self) -> i64 {
        self.lease.job_id
    }

    async fn check(&self, app: &TestApp) -> Option<i64> {
        let finished = self.good && !self.refused;
        let job = "SELECT FROM jobs WHERE staged_id = $1 AND finished_at IS NOT NULL AND lease_token IS NULL";
        assert_eq!(app.query(job, &[&self.lease.job_id]).await.len(), usize::from(finished));
        let recorded = "SELECT message_id FROM receipts WHERE staged_id = $1";
        let recorded = app.query(recorded, &[&self.lease.job_id]).await;
        let messages: Vec<String> = recorded.iter().map(|row| row.get(0)).collect();
        let sent = self.sent.as_ref().filter(|_| finished).map(|sent| sent.message_id.clone());
        assert_eq!(messages, Vec::from_iter(sent));
        finished.then_some(self.lease.job_id)
    }
}
