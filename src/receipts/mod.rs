//! Receipts: what `send_ride_receipt` asks for, as an e-mail.
//!
//! Everything about a receipt follows from the ride and the staged job, its date and its message id included, so that
//! the same job makes the same mail however often it is worked. A mail cannot be part of a transaction, so it is handed
//! over first and recorded afterwards, by the statement that finishes the job. What happens if the process dies between
//! the two depends on the transport:
//!
//! - [`file`](mod@file): the file is written again with the same bytes. There is one file for a ride in every case.
//! - [`smtp`]: the mail server gets the mail again, under the same message id, by which mailboxes that drop repeats
//!   recognise it. SMTP cannot promise more: if a connection breaks after the mail was sent and before the answer came,
//!   the client cannot know whether the mail was taken.
//!
//! The address is read when the receipt is sent. It is not staged with the job, where it would stay in queues and dead
//! letters, and no log and no error holds an address.

pub mod file;
mod refund;
mod render;
mod rules;
pub mod smtp;
mod store;

use std::path::PathBuf;
use std::time::Duration;

use atomic_phases::database::{Database, DatabaseError};
use atomic_phases::idempotency::Job;
use atomic_phases::queue::handler::{Handler, HandlerError};
use atomic_phases::queue::leases::Held;
use atomic_phases::queue::work::Claimed;
use futures_util::future::BoxFuture;
use lettre::address::Envelope;
use lettre::message::Mailbox;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use file::Directory;
pub use refund::{REFUND_RECEIPT, RefundReceipt, RefundReceipts};
pub use rules::rules;
use smtp::Smtp;

/// Sends receipts.
#[derive(Debug, Clone)]
pub struct Receipts {
    /// Where rides and users are.
    pub database: Database,
    /// The UUID of this database. Without it, a database made anew, whose ids begin again, would send under the message
    /// ids of another.
    pub installation: Uuid,
    /// How receipts are sent.
    pub sender: Sender,
}

/// `[receipts]`: how receipts are sent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// To a directory or to a mail server.
    pub transport: Transport,
    /// Where `transport = "file"` puts receipts, one file each, as any mail program opens them.
    pub dir: PathBuf,
    /// The mail server of `transport = "smtp"`, with user and password: `smtps://` uses TLS from the first byte,
    /// `smtp://` requires STARTTLS before the login and the mail. To this machine itself `smtp://` is unencrypted; with
    /// `?tls=none` it is unencrypted to any host, with `?tls=required` to none.
    pub smtp_url: Option<SecretString>,
    /// The sender of receipts, as in `Rocket Rides <receipts@your.domain>`. Message ids end with its domain.
    pub from: String,
    /// Deadline for handing one receipt over, from the start of the connection to the answer that it was taken. It fits
    /// into the worker's lease, so that no other worker starts meanwhile, and into the shutdown's deadline.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            transport: Transport::File,
            dir: PathBuf::from("var/receipts"),
            smtp_url: None,
            from: "Rocket Rides <receipts@rocket-rides.example>".to_owned(),
            timeout: Duration::from_secs(10),
        }
    }
}

/// A way to send receipts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Each a file in `receipts.dir`: nothing to install, and a repeated delivery replaces the file with itself.
    File,
    /// To the mail server at `receipts.smtp_url`.
    Smtp,
}

/// How receipts are sent, and their sender: all that can be known and checked without a database.
#[derive(Debug, Clone)]
pub struct Sender {
    from: Mailbox,
    way: Way,
    timeout: Duration,
}

#[derive(Debug, Clone)]
enum Way {
    File(Directory),
    Smtp(Box<Smtp>),
}

/// Why no receipt at all can be sent with this config.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `receipts.dir` cannot be written to.
    #[error("receipts.dir: cannot write to {dir:?}")]
    Directory {
        /// As configured.
        dir: std::path::PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// `receipts.smtp_url` names no mail server.
    #[error("receipts.smtp_url")]
    Url(#[from] smtp::UrlError),
    /// `receipts.from` is no address.
    #[error("receipts.from")]
    From(#[from] lettre::address::AddressError),
}

/// A receipt, ready to be sent.
#[derive(Debug, Clone)]
pub struct Mail {
    /// As in its header, angle brackets included.
    pub message_id: String,
    /// The name of its file, if it is sent as one. No other receipt of any database has the same name.
    pub file_name: String,
    envelope: Envelope,
    bytes: Vec<u8>,
}

/// Why a receipt was not sent, or may not have been sent.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// The job's arguments are not those of a receipt.
    #[error("the arguments make no sense")]
    Arguments(#[source] serde_json::Error),
    /// They are those of a receipt, but there is no such ride to send one for.
    #[error("the arguments make no sense: {0}")]
    Ride(&'static str),
    /// The user's e-mail address is none that a mail could be sent to.
    #[error("the user has no e-mail address")]
    Address(#[source] lettre::address::AddressError),
    /// The ride could not be read.
    #[error("the ride could not be read")]
    Database(#[from] DatabaseError),
    /// The file could not be written.
    #[error("the receipt could not be written to receipts.dir")]
    File(#[source] std::io::Error),
    /// The mail server did not take it.
    #[error("the mail server did not take the receipt")]
    Smtp(#[from] smtp::SmtpError),
    /// It is not known whether the receipt was taken.
    #[error("the receipt was not handed over within {0:?}")]
    TimedOut(Duration),
}

impl ReceiptError {
    /// Returns whether every further attempt would fail the same way.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Arguments(_) | Self::Ride(_) | Self::Address(_) => true,
            Self::Smtp(error) => error.is_permanent(),
            Self::Database(_) | Self::File(_) | Self::TimedOut(_) => false,
        }
    }
}

impl Sender {
    /// Checks all of the config, and that files can be written where receipts are to be files.
    pub fn new(settings: &Settings) -> Result<Self, SetupError> {
        let way = match settings.transport {
            Transport::File => {
                let open = Directory::open(&settings.dir);
                Way::File(open.map_err(|source| SetupError::Directory { dir: settings.dir.clone(), source })?)
            }
            Transport::Smtp => {
                let url = settings.smtp_url.as_ref().map_or("", |url| url.expose_secret());
                Way::Smtp(Box::new(Smtp::parse(url)?))
            }
        };
        Ok(Self { from: settings.from.parse()?, way, timeout: settings.timeout })
    }

    /// Returns the longest time that [`Sender::send`] takes.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Hands the mail over. When it returns without an error the mail is on disk, or the server has taken it.
    pub async fn send(&self, mail: &Mail) -> Result<(), ReceiptError> {
        let late = |_| ReceiptError::TimedOut(self.timeout);
        match &self.way {
            Way::File(directory) => {
                let written = tokio::time::timeout(self.timeout, directory.put(&mail.file_name, &mail.bytes));
                written.await.map_err(late)?.map_err(ReceiptError::File)
            }
            Way::Smtp(smtp) => {
                let sent = tokio::time::timeout(self.timeout, smtp.send(&mail.envelope, &mail.bytes));
                // QUIT is sent outside the deadline: a slow answer to it must not look like a mail that was not taken.
                sent.await.map_err(late)??.farewell();
                Ok(())
            }
        }
    }
}

/// The job that is staged with a paid ride.
pub const RIDE_RECEIPT: &str = "send_ride_receipt";

/// The arguments of that job.
#[derive(Debug, Serialize, Deserialize)]
pub struct RideReceipt {
    /// The ride.
    pub ride_id: i64,
    /// The user who paid.
    pub user_id: i64,
    /// The amount, in hundredths of the currency.
    pub amount: u32,
    /// The currency.
    pub currency: String,
}

impl From<RideReceipt> for Job {
    fn from(receipt: RideReceipt) -> Self {
        Self { name: RIDE_RECEIPT, args: serde_json::to_value(receipt).expect("numbers and texts") }
    }
}

impl Handler for Receipts {
    fn name(&self) -> &'static str {
        RIDE_RECEIPT
    }

    fn effects(&self) -> &'static str {
        include_str!("record.sql")
    }

    fn work<'a>(&'a self, job: &'a Claimed, held: &'a Held) -> BoxFuture<'a, Result<Value, HandlerError>> {
        Box::pin(async move {
            let Some((ride_id, mail)) = self.prepare(job).await? else { return Ok(Value::Null) };
            self.send(&mail, held).await?;
            Ok(json!({ "ride_id": ride_id, "message_id": mail.message_id }))
        })
    }
}

impl From<ReceiptError> for HandlerError {
    fn from(error: ReceiptError) -> Self {
        if error.is_permanent() { Self::Permanent(error.into()) } else { Self::Transient(error.into()) }
    }
}

impl Receipts {
    /// Returns the mail that the job asks for, or `None` if the ride's receipt was sent before. Locks nothing.
    async fn prepare(&self, job: &Claimed) -> Result<Option<(i64, Mail)>, ReceiptError> {
        let arguments: RideReceipt = serde_json::from_str(job.args.get()).map_err(ReceiptError::Arguments)?;
        let Some(ride) = store::find_ride(&self.database, arguments.ride_id).await? else {
            return Err(ReceiptError::Ride("there is no such ride"));
        };
        if ride.receipted {
            return Ok(None);
        }
        if ride.user_id != arguments.user_id {
            return Err(ReceiptError::Ride("the ride is another user's"));
        }
        let Some(charge_id) = &ride.charge_id else {
            return Err(ReceiptError::Ride("the ride was not paid"));
        };
        let receipt = render::Receipt {
            ride_id: arguments.ride_id,
            refund: None,
            staged_id: job.lease.job_id,
            at: job.staged_at,
            amount: arguments.amount,
            currency: &arguments.currency,
            origin: ride.origin,
            target: ride.target,
            charge_id,
        };
        Ok(Some((arguments.ride_id, self.mail(&receipt, &ride.email)?)))
    }

    fn mail(&self, receipt: &render::Receipt<'_>, email: &str) -> Result<Mail, ReceiptError> {
        let to = email.parse().map_err(ReceiptError::Address)?;
        Ok(render::mail(receipt, self.sender.from.clone(), to, self.installation))
    }

    async fn send(&self, mail: &Mail, held: &Held) -> Result<(), HandlerError> {
        // No fence stands before a mail server, so the whole conversation must fit into the lease.
        if !held.outlasts(self.sender.timeout()) {
            return Err(HandlerError::LeaseLost);
        }
        Ok(self.sender.send(mail).await?)
    }
}
