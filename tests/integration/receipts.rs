//! Receipts: their contents, and what happens when a disk or a mail server does not take them.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mailparse::{MailHeaderMap, ParsedMail};
use rocket_rides_atomic::config::Config;
use rocket_rides_atomic::receipts::Transport;
use rocket_rides_atomic::supervisor::{StartError, Supervisor};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::SecretString;

use crate::support::app::{TempDir, TestApp, config};
use crate::support::client::{GOOD_USER, Post};
use crate::support::smtp::{At, MailServer, Reply};
use crate::support::tls::Certificates;
use crate::support::{cluster, eventually};

fn working(config: &mut Config) {
    config.roles.enqueuer = true;
    config.roles.worker = true;
    config.worker.retry_after = Duration::from_millis(20);
}

/// Returns a change to the config that sends receipts to this server.
fn mailing(server: &MailServer) -> impl FnOnce(&mut Config) {
    let url = server.url();
    move |config| {
        working(config);
        config.receipts.transport = Transport::Smtp;
        config.receipts.smtp_url = Some(SecretString::from(url));
        config.receipts.from = "Rocket Rides <receipts@rides.test>".to_owned();
        config.receipts.timeout = Duration::from_millis(500);
    }
}

/// Returns the finished files in the directory of receipts.
pub fn receipts(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "eml")).collect()
}

/// Returns the text and the HTML of a receipt, with `\n` as line ends.
fn parts(mail: &ParsedMail<'_>) -> [String; 2] {
    assert_eq!(mail.ctype.mimetype, "multipart/alternative");
    ["text/plain", "text/html"].map(|kind| {
        let part = mail.subparts.iter().find(|part| part.ctype.mimetype == kind).unwrap();
        part.get_body().unwrap().replace("\r\n", "\n")
    })
}

/// Asserts that this mail is the receipt of the only ride.
async fn assert_is_the_receipt(app: &TestApp, mail: &[u8]) {
    let mail = mailparse::parse_mail(mail).unwrap();
    let header = |name: &str| mail.headers.get_first_value(name).unwrap();
    let ride: i64 = app.get("SELECT id FROM rides").await;
    let charge: String = app.get("SELECT stripe_charge_id FROM rides").await;
    assert_eq!(header("To"), GOOD_USER);
    assert_eq!(header("Subject"), format!("Your receipt for rocket ride {ride}"));
    assert_eq!(header("Message-ID"), app.get::<String>("SELECT message_id FROM receipts").await);
    for part in parts(&mail) {
        for said in [&ride.to_string(), "37.7749, -122.4194", "34.0522, -118.2437", "20.00 USD", charge.as_str()] {
            assert!(part.contains(said), "{said} in {part}");
        }
    }
}

#[tokio::test]
async fn a_receipt_is_a_file_that_says_it_in_text_and_in_html() {
    let mut app = TestApp::with(working).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("jobs WHERE finished_at IS NOT NULL AND attempts = 1", 1).await;
    let [file] = receipts(&app.config.receipts.dir).try_into().unwrap();
    assert_is_the_receipt(&app, &std::fs::read(&file).unwrap()).await;
    let staged: i64 = app.get("SELECT staged_id FROM receipts").await;
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.contains(&format!("-{staged}-")), "{name}");
    app.assert_sound().await;
    app.stop().await.unwrap();
}

#[tokio::test]
async fn a_job_that_is_worked_again_replaces_its_file_with_the_same() {
    let app = TestApp::with(working).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("receipts", 1).await;
    let [file] = receipts(&app.config.receipts.dir).try_into().unwrap();
    let before = std::fs::read(&file).unwrap();
    // As after a crash between the file and the statement that finishes the job.
    app.execute(
        "WITH lost AS (DELETE FROM receipts)
             UPDATE jobs SET finished_at = NULL, next_attempt_at = now()",
    )
    .await;
    app.until_count("receipts", 1).await;
    assert_eq!(receipts(&app.config.receipts.dir), std::slice::from_ref(&file));
    assert_eq!(std::fs::read(&file).unwrap(), before);
    app.assert_sound().await;
}

#[tokio::test]
async fn a_receipt_that_was_recorded_is_not_sent_again() {
    let app = TestApp::with(working).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("receipts", 1).await;
    let [file] = receipts(&app.config.receipts.dir).try_into().unwrap();
    std::fs::remove_file(&file).unwrap();
    app.execute("UPDATE jobs SET finished_at = NULL, next_attempt_at = now()").await;
    app.until_count("jobs WHERE finished_at IS NOT NULL AND attempts = 2", 1).await;
    assert!(!file.exists());
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_refused_at_start() {
    let (database, dir) = (cluster::database().await, TempDir::new());
    let mut config = config(&database, dir.path());
    config.roles.worker = true;
    std::fs::write(dir.path().join("file"), "").unwrap();
    config.receipts.dir = dir.path().join("file").join("receipts");
    let error = Supervisor::start(config.clone()).await.expect_err("a file is no directory");
    let StartError::Receipts(error) = &error else { panic!("{error:?}") };
    assert!(error.to_string().starts_with("receipts.dir: cannot write to "), "{error}");
    // A process that sends no receipts needs no directory.
    config.roles.worker = false;
    Supervisor::start(config).await.unwrap();
}

#[tokio::test]
async fn a_directory_that_goes_away_delays_receipts_and_loses_none() {
    let app = TestApp::with(working).await;
    let dir = app.config.receipts.dir.clone();
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::write(&dir, "").unwrap();
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("jobs WHERE attempts >= 2 AND last_error LIKE '%receipts.dir%'", 1).await;
    std::fs::remove_file(&dir).unwrap();
    std::fs::create_dir(&dir).unwrap();
    app.until_count("receipts", 1).await;
    assert_eq!(receipts(&dir).len(), 1);
    app.assert_sound().await;
}

#[tokio::test]
async fn a_mail_server_gets_the_receipt_and_the_password() {
    let server = MailServer::start().await;
    let url = format!("smtp://me:p%40ss@{}", server.address);
    let app = TestApp::with(|config| {
        mailing(&server)(config);
        config.receipts.smtp_url = Some(SecretString::from(url));
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("receipts", 1).await;
    let [received] = server.received().try_into().unwrap();
    assert_eq!((received.from.as_str(), received.to.as_str()), ("receipts@rides.test", GOOD_USER));
    assert_is_the_receipt(&app, received.mail.as_bytes()).await;
    // The base64 of \0me\0p@ss.
    assert_eq!(server.logins(), ["AUTH PLAIN AG1lAHBAc3M="]);
    app.assert_sound().await;
}

#[tokio::test]
async fn a_mail_server_that_is_not_in_the_mood_is_asked_again() {
    let server = MailServer::start().await;
    server.script(&[
        (At::Recipient, Reply::Say("450 4.2.1 later")),
        (At::Mail, Reply::HangUp),
        (At::Mail, Reply::Say("550 5.1.0 we do not know you")),
        (At::Recipient, Reply::Say("554 5.7.1 <user@example.com>: relay access denied")),
        (At::End, Reply::Say("451 4.3.0 disk full")),
    ]);
    let app = TestApp::with(mailing(&server)).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("receipts", 1).await;
    assert_eq!(app.count("jobs WHERE attempts = 6 AND last_error IS NULL").await, 1);
    assert_eq!((server.received().len(), server.connections()), (1, 6));
}

#[tokio::test]
async fn a_recipient_that_is_refused_for_ever_is_a_dead_letter_without_the_address() {
    let server = MailServer::start().await;
    server.script(&[(At::Recipient, Reply::Say("550 5.1.1 <user@example.com>: no such user here\0"))]);
    let app = TestApp::with(mailing(&server)).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("dead_jobs WHERE died_in = 'queue' AND attempts = 1", 1).await;
    let error: String = app.get("SELECT error FROM dead_jobs").await;
    assert!(error.contains("no such user here") && error.contains("RCPT TO"), "{error}");
    assert!(!error.contains("example.com"), "{error}");
    assert_eq!(app.count("jobs").await + app.count("receipts").await, 0);
    app.assert_sound().await;
}

#[tokio::test]
async fn a_mail_that_may_have_been_taken_is_sent_again_under_the_same_id() {
    let server = MailServer::start().await;
    server.script(&[(At::End, Reply::TakeAndHangUp), (At::Mail, Reply::Hang)]);
    let app = TestApp::with(mailing(&server)).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("receipts", 1).await;
    assert_eq!(app.count("jobs WHERE attempts = 3").await, 1);
    let [first, second] = server.received().try_into().unwrap();
    assert_eq!(first.mail, second.mail);
    assert_is_the_receipt(&app, second.mail.as_bytes()).await;
}

#[tokio::test]
async fn without_tls_nothing_is_said_to_a_server_that_must_speak_it() {
    let server = MailServer::start().await;
    let url = format!("smtp://me:secret@{}?tls=required", server.address);
    let app = TestApp::with(|config| {
        mailing(&server)(config);
        config.receipts.smtp_url = Some(SecretString::from(url));
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("jobs WHERE attempts >= 2 AND last_error LIKE '%STARTTLS%'", 1).await;
    assert!(server.received().is_empty() && server.logins().is_empty());
    let error: String = app.get("SELECT last_error FROM jobs").await;
    assert!(!error.contains("secret"), "{error}");
}

#[tokio::test]
async fn an_untrusted_mail_server_is_sent_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Everything that arrives once the connection is encrypted.
    let heard = tokio::task::spawn_blocking(move || {
        let certificates = Certificates::new();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![CertificateDer::from_pem_file(&certificates.certificate).unwrap()];
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(&certificates.key).unwrap())
            .unwrap();
        let (client, _) = listener.accept().unwrap();
        let mut client = rustls::StreamOwned::new(rustls::ServerConnection::new(Arc::new(config)).unwrap(), client);
        let mut heard = Vec::new();
        let greeted = client.write_all(b"220 test\r\n").and_then(|()| client.read_to_end(&mut heard).map(drop));
        (greeted.is_err(), heard)
    });
    let app = TestApp::with(|config| {
        working(config);
        config.receipts.transport = Transport::Smtp;
        config.receipts.smtp_url = Some(SecretString::from(format!("smtps://me:secret@{address}")));
        config.worker.retry_after = Duration::from_secs(3600);
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("jobs WHERE attempts = 1 AND last_error LIKE '%certificate%'", 1).await;
    assert_eq!(heard.await.unwrap(), (true, Vec::new()));
}

#[tokio::test]
async fn what_a_dead_process_left_unfinished_is_cleaned_up() {
    let (database, dir) = (cluster::database().await, TempDir::new());
    let mut config = config(&database, dir.path());
    config.roles.worker = true;
    std::fs::create_dir(&config.receipts.dir).unwrap();
    let [old, new] = [".unfinished-old", ".unfinished-new"].map(|name| config.receipts.dir.join(name));
    for file in [&old, &new] {
        std::fs::write(file, "half a mail").unwrap();
    }
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(24 * 3600);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(yesterday).unwrap();
    let _supervisor = Supervisor::start(config).await.unwrap();
    eventually("the old one to go", async || (!old.exists()).then_some(())).await;
    // Another process may be writing it just now.
    assert!(new.exists());
}
