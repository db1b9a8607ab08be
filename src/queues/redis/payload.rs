//! A job as Sidekiq's workers expect it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use atomic_phases::queue::StagedJob;
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Settings, Timestamps};

/// Sidekiq's field names, in the order in which it writes them.
#[derive(Serialize)]
struct Payload<'a> {
    class: &'a str,
    args: [&'a RawValue; 1],
    queue: &'a str,
    retry: bool,
    jid: String,
    created_at: Time,
    enqueued_at: Time,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Time {
    /// Always written with a decimal point, by which Sidekiq 8 distinguishes seconds from milliseconds.
    Seconds(f64),
    Milliseconds(u64),
}

/// Why a job can never be put in the queue.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error("{class:?} is no name of a Ruby class; name one for this job in redis.classes")]
    Class { class: String },
    #[error("cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

#[derive(Debug)]
pub(super) struct Encoder {
    installation: Uuid,
    queue: String,
    classes: BTreeMap<String, String>,
    timestamps: Timestamps,
}

impl Encoder {
    pub(super) fn new(settings: &Settings, installation: Uuid) -> Self {
        Self {
            installation,
            queue: settings.queue.clone(),
            classes: settings.classes.clone(),
            timestamps: settings.timestamps,
        }
    }

    pub(super) fn encode(&self, job: &StagedJob, now: SystemTime) -> Result<String, EncodeError> {
        let derived;
        let class = match self.classes.get(&job.name) {
            Some(class) => class,
            None => {
                derived = camel_case(&job.name);
                &derived
            }
        };
        if !is_constant(class) {
            return Err(EncodeError::Class { class: class.clone() });
        }
        Ok(serde_json::to_string(&Payload {
            class,
            args: [&job.args],
            queue: &self.queue,
            retry: true,
            jid: self.jid(job.id),
            created_at: self.time(job.staged_at),
            enqueued_at: self.time(now),
        })?)
    }

    /// Returns Sidekiq's id of a job. It is the same for each push, so that a worker can drop repeats. The installation
    /// is part of it, because ids repeat when a database is made anew.
    fn jid(&self, id: i64) -> String {
        let digest = Sha256::new().chain_update(self.installation).chain_update(id.to_be_bytes()).finalize();
        digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect()
    }

    fn time(&self, at: SystemTime) -> Time {
        let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        match self.timestamps {
            // A double is exact enough for microseconds in our century, as in Sidekiq itself, but not for nanoseconds.
            Timestamps::Seconds => Time::Seconds(since_epoch.as_micros() as f64 / 1e6),
            Timestamps::Milliseconds => {
                Time::Milliseconds(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
            }
        }
    }
}

/// Turns `send_ride_receipt` into `SendRideReceipt`.
fn camel_case(name: &str) -> String {
    let mut class = String::with_capacity(name.len());
    for word in name.split('_') {
        let mut letters = word.chars();
        class.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        class.push_str(letters.as_str());
    }
    class
}

/// Returns whether Ruby could have a class of this name, as in `Billing::SendRideReceipt`.
pub(super) fn is_constant(class: &str) -> bool {
    class.split("::").all(|part| {
        part.starts_with(|first: char| first.is_ascii_uppercase())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTALLATION: Uuid = Uuid::from_u128(0x8f4e_2f2c_6e5d_4b7a_9c3b_1a2b_3c4d_5e6f);

    fn job(name: &str) -> StagedJob {
        StagedJob {
            id: 42,
            name: name.to_owned(),
            args: RawValue::from_string(r#"{"ride_id":7}"#.to_owned()).expect("JSON"),
            staged_at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_793_662_419_000_000),
        }
    }

    fn encode(settings: &Settings, job: &StagedJob) -> Result<String, String> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_micros(1_793_662_419_422_699);
        Encoder::new(settings, INSTALLATION).encode(job, now).map_err(|error| error.to_string())
    }

    #[test]
    fn a_job_is_written_as_sidekiq_writes_it() {
        let mut settings = Settings::default();
        assert_eq!(
            encode(&settings, &job("send_ride_receipt")).expect("encoded"),
            r#"{"class":"SendRideReceipt","args":[{"ride_id":7}],"queue":"default","retry":true,"jid":"16e1d8d57e5f62c9a87cea5d","created_at":1793662419.0,"enqueued_at":1793662419.422699}"#
        );
        settings.timestamps = Timestamps::Milliseconds;
        let written = encode(&settings, &job("send_ride_receipt")).expect("encoded");
        assert!(written.ends_with(r#""created_at":1793662419000,"enqueued_at":1793662419422}"#), "{written}");
    }

    #[test]
    fn classes_are_named_or_derived_and_always_ruby_constants() {
        let mut settings = Settings::default();
        settings.classes.insert("receipt".to_owned(), "Billing::Receipt".to_owned());
        for (name, class) in
            [("receipt", "Billing::Receipt"), ("a_b__c", "ABC"), ("x2_y", "X2Y"), ("Ready", "Ready")]
        {
            let written = encode(&settings, &job(name)).expect(name);
            assert!(written.starts_with(&format!(r#"{{"class":"{class}","#)), "{written}");
        }
        for name in ["", "_", "2_fast", "no-dash", "Étude", "a b", "::"] {
            assert!(encode(&settings, &job(name)).expect_err(name).contains("redis.classes"));
        }
    }

    #[test]
    fn a_jid_is_of_its_installation() {
        let (ours, theirs) = (Settings::default(), Uuid::from_u128(1));
        let jid = |installation, id| Encoder::new(&ours, installation).jid(id);
        assert_eq!(jid(INSTALLATION, 42).len(), 24);
        assert_eq!(jid(INSTALLATION, 42), jid(INSTALLATION, 42));
        assert_ne!(jid(INSTALLATION, 42), jid(INSTALLATION, 43));
        assert_ne!(jid(INSTALLATION, 42), jid(theirs, 42));
    }
}
