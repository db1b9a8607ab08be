//! The sandbox's memory: customers, charges and idempotency keys, in a file and in memory at once.
//!
//! One lock guards both, and what is done under it is short: look up, or write one line and index it. The line is
//! written first, so memory never holds more than the file.

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::distr::{Alphanumeric, SampleString};

use super::books::{Books, Key, Keys, Object, Page};
use super::journal::{Event, Journal, LedgerError};
use super::record::{
    Charge, ChargeStatus, ChargeTerms, Customer, CustomerTerms, Failure, Refund, RefundFailure, RefundTerms,
};

/// The sandbox's memory. It shows what "Stripe" has really done, whatever its replies said.
#[derive(Debug)]
pub struct Ledger {
    state: Mutex<State>,
    key_retention_ms: u64,
}

impl Ledger {
    /// Opens the ledger in this file or starts a new one, with parent directories, and locks it against other
    /// processes. Reads the whole file, so an asynchronous caller does this on a blocking thread.
    ///
    /// Idempotency keys are forgotten once they are `key_retention` old; charges never.
    pub fn open(path: &Path, key_retention: Duration) -> Result<Self, LedgerError> {
        let (mut books, mut keys, mut latest_ms) = (Books::default(), Keys::default(), 0);
        let journal = Journal::open(path, |event| {
            let object = match event {
                Event::KeysForgotten {} => return keys.forget_stored(),
                Event::Settled { status } => return books.settle(status),
                Event::Aged { ms } => {
                    age(&mut books, &mut keys, &mut latest_ms, ms);
                    return;
                }
                Event::Customer(customer) => Object::Customer(Arc::new(customer.into_owned())),
                Event::Charge(charge) => Object::Charge(Arc::new(charge.into_owned())),
                Event::Failure(failure) => Object::Failure(Arc::new(failure.into_owned())),
                Event::Refund(refund) => Object::Refund(Arc::new(refund.into_owned())),
                Event::RefundFailure(failure) => Object::RefundFailure(Arc::new(failure.into_owned())),
            };
            latest_ms = object.created_ms();
            index(&mut books, &mut keys, object);
        })?;
        let key_retention_ms = u64::try_from(key_retention.as_millis()).unwrap_or(u64::MAX);
        Ok(Self { state: Mutex::new(State { journal, books, keys, latest_ms }), key_retention_ms })
    }

    /// Returns every attempt to charge that ran to its end, declined ones included, oldest first. Copies a pointer
    /// each.
    pub fn charges(&self) -> Vec<Arc<Charge>> {
        self.lock().books.charges().to_vec()
    }

    /// Does the same as [`Ledger::charges`], for one customer.
    pub fn charges_of(&self, customer: &str) -> Vec<Arc<Charge>> {
        self.lock().books.charges_of(customer)
    }

    /// Returns every refund, oldest first. Copies a pointer each.
    pub fn refunds(&self) -> Vec<Arc<Refund>> {
        self.lock().books.refunds().to_vec()
    }

    /// Forgets every idempotency key, as Stripe does with those older than a day.
    pub fn forget_keys(&self) -> Result<(), LedgerError> {
        let mut state = self.lock();
        state.journal.append(&Event::KeysForgotten {})?;
        state.keys.forget_stored();
        Ok(())
    }

    /// Makes all that is recorded older by this much, as if that much time had passed: keys that are then past their
    /// retention are forgotten, and a list by time of creation may no longer reach older charges.
    pub fn age(&self, by: Duration) -> Result<(), LedgerError> {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        let mut guard = self.lock();
        let state = &mut *guard;
        state.journal.append(&Event::Aged { ms })?;
        age(&mut state.books, &mut state.keys, &mut state.latest_ms, ms);
        Ok(())
    }

    /// Gives all pending charges and refunds this status. The answer stored under their idempotency keys stays the
    /// pending one, as at Stripe.
    pub fn settle(&self, status: ChargeStatus) -> Result<(), LedgerError> {
        let mut state = self.lock();
        state.journal.append(&Event::Settled { status })?;
        state.books.settle(status);
        Ok(())
    }

    pub(super) fn customer(&self, id: &str) -> Option<Arc<Customer>> {
        self.lock().books.customer(id).cloned()
    }

    pub(super) fn charge(&self, id: &str) -> Option<Arc<Charge>> {
        self.lock().books.charge(id).cloned()
    }

    pub(super) fn page(&self, page: &Page) -> Option<(Vec<Arc<Charge>>, bool)> {
        self.lock().books.page(page)
    }

    pub(super) fn refund_page(&self, page: &Page) -> Option<(Vec<Arc<Refund>>, bool)> {
        self.lock().books.refund_page(page)
    }

    /// Returns each charge with whether it is refunded.
    pub(super) fn with_refunds(&self, charges: Vec<Arc<Charge>>) -> Vec<(Arc<Charge>, bool)> {
        let with = |charge: Arc<Charge>| {
            let refunded = self.is_refunded(&charge.id);
            (charge, refunded)
        };
        charges.into_iter().map(with).collect()
    }

    pub(super) fn is_refunded(&self, charge: &str) -> bool {
        self.lock().books.refund_of(charge).is_some_and(|refund| refund.status != ChargeStatus::Failed)
    }

    /// Takes the key for a request about to be executed, unless an earlier one has it.
    pub(super) fn claim(&self, key: Option<String>) -> Claimed<'_> {
        if let Some(key) = &key {
            let mut state = self.lock();
            let forgotten_ms = now_ms().saturating_sub(self.key_retention_ms);
            match state.keys.look_up(key, forgotten_ms) {
                Some(Key::InUse) => return Claimed::InUse,
                Some(Key::Stored(object)) => return Claimed::Stored(object.clone()),
                None => state.keys.hold(key),
            }
        }
        Claimed::New(Claim { ledger: self, key })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the ledger")
    }
}

/// The result of claiming a key.
#[derive(Debug)]
pub(super) enum Claimed<'a> {
    /// The key is ours, or none was given: execute.
    New(Claim<'a>),
    /// An earlier request with this key created this.
    Stored(Object),
    /// A request with this key is being executed.
    InUse,
}

/// The right to execute one request. However it ends, the key does not stay in use.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    ledger: &'a Ledger,
    key: Option<String>,
}

impl Claim<'_> {
    pub(super) fn create_customer(self, terms: CustomerTerms) -> Result<Arc<Customer>, LedgerError> {
        let mut state = self.ledger.lock();
        let customer = Arc::new(Customer {
            id: new_id("cus_", 14),
            created_ms: state.next_created_ms(),
            terms,
            idempotency_key: self.key.clone(),
        });
        state.journal.append(&Event::Customer(Cow::Borrowed(&customer)))?;
        state.remember(Object::Customer(Arc::clone(&customer)));
        Ok(customer)
    }

    pub(super) fn charge(self, terms: ChargeTerms, status: ChargeStatus) -> Result<Arc<Charge>, LedgerError> {
        self.record_charge(terms, status, false)
    }

    /// Does the same as [`Claim::charge`], but the answer, which is stored, is a failure.
    pub(super) fn charge_and_fail(
        self,
        terms: ChargeTerms,
        status: ChargeStatus,
    ) -> Result<Arc<Charge>, LedgerError> {
        self.record_charge(terms, status, true)
    }

    /// Charges nothing and stores that it failed.
    pub(super) fn fail(self, terms: ChargeTerms) -> Result<(), LedgerError> {
        let mut state = self.ledger.lock();
        let created_ms = state.next_created_ms();
        let failure = Arc::new(Failure { created_ms, terms, idempotency_key: self.key.clone() });
        state.journal.append(&Event::Failure(Cow::Borrowed(&failure)))?;
        state.remember(Object::Failure(failure));
        Ok(())
    }

    /// Refunds a charge, unless it is refunded already. With `failed_to_answer`, the answer, which is stored, is a
    /// failure.
    pub(super) fn refund(
        self,
        terms: RefundTerms,
        status: ChargeStatus,
        failed_to_answer: bool,
    ) -> Result<Option<Arc<Refund>>, LedgerError> {
        let mut state = self.ledger.lock();
        let earlier = state.books.refund_of(&terms.charge);
        if earlier.is_some_and(|refund| refund.status != ChargeStatus::Failed) {
            return Ok(None);
        }
        let charge = state.books.charge(&terms.charge).expect("it was looked up, and stays");
        let refund = Arc::new(Refund {
            id: new_id("re_", 24),
            created_ms: state.next_created_ms(),
            status,
            amount: charge.terms.amount,
            currency: charge.terms.currency.clone(),
            terms,
            idempotency_key: self.key.clone(),
            failed_to_answer,
        });
        state.journal.append(&Event::Refund(Cow::Borrowed(&refund)))?;
        state.remember(Object::Refund(Arc::clone(&refund)));
        Ok(Some(refund))
    }

    /// Refunds nothing and stores that it failed.
    pub(super) fn fail_refund(self, terms: RefundTerms) -> Result<(), LedgerError> {
        let mut state = self.ledger.lock();
        let created_ms = state.next_created_ms();
        let failure = Arc::new(RefundFailure { created_ms, terms, idempotency_key: self.key.clone() });
        state.journal.append(&Event::RefundFailure(Cow::Borrowed(&failure)))?;
        state.remember(Object::RefundFailure(failure));
        Ok(())
    }

    fn record_charge(
        self,
        terms: ChargeTerms,
        status: ChargeStatus,
        failed_to_answer: bool,
    ) -> Result<Arc<Charge>, LedgerError> {
        let mut state = self.ledger.lock();
        let charge = Arc::new(Charge {
            id: new_id("ch_", 24),
            created_ms: state.next_created_ms(),
            status,
            terms,
            idempotency_key: self.key.clone(),
            failed_to_answer,
        });
        state.journal.append(&Event::Charge(Cow::Borrowed(&charge)))?;
        state.remember(Object::Charge(Arc::clone(&charge)));
        Ok(charge)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // Not `lock()`: a panic here, while another one unwinds, would abort the process.
        if let Some(key) = &self.key
            && let Ok(mut state) = self.ledger.state.lock()
        {
            state.keys.release(key);
        }
    }
}

#[derive(Debug)]
struct State {
    journal: Journal,
    books: Books,
    keys: Keys,
    latest_ms: u64,
}

impl State {
    /// Returns the time for a new object, never earlier than the latest one. The clock may be set back, but charges
    /// must stay in order, since lists end at the first that is too old.
    fn next_created_ms(&self) -> u64 {
        now_ms().max(self.latest_ms)
    }

    fn remember(&mut self, object: Object) {
        self.latest_ms = object.created_ms();
        index(&mut self.books, &mut self.keys, object);
    }
}

fn index(books: &mut Books, keys: &mut Keys, object: Object) {
    books.add(&object);
    if let Some(key) = object.idempotency_key().map(str::to_owned) {
        keys.store(&key, object);
    }
}

fn age(books: &mut Books, keys: &mut Keys, latest_ms: &mut u64, ms: u64) {
    books.age(ms);
    keys.age(ms);
    *latest_ms = latest_ms.saturating_sub(ms);
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Returns an id in Stripe's form: a prefix for the kind of object, then random letters and digits.
pub(super) fn new_id(prefix: &str, length: usize) -> String {
    let mut id = String::with_capacity(prefix.len() + length);
    id.push_str(prefix);
    Alphanumeric.append_string(&mut rand::rng(), &mut id, length);
    id
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::fs;
    use std::io::Write;

    use super::super::record::{Metadata, Source};
    use super::*;
    use crate::stripe::testing::Scratch;

    const HOUR: Duration = Duration::from_secs(3600);

    fn charge(ledger: &Ledger, key: &str) -> Arc<Charge> {
        let terms = ChargeTerms {
            amount: 100,
            currency: "usd".to_owned(),
            customer: "cus_1".to_owned(),
            description: None,
            metadata: Metadata::default(),
        };
        match ledger.claim(Some(key.to_owned())) {
            Claimed::New(claim) => claim.charge(terms, ChargeStatus::Succeeded).expect("written"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_torn_last_line_is_cut_off() {
        let scratch = Scratch::new();
        let ledger = Ledger::open(&scratch.ledger(), HOUR).expect("new");
        let kept = charge(&ledger, "kept");
        charge(&ledger, "torn");
        drop(ledger);
        let whole = fs::read(scratch.ledger()).expect("readable");
        let first = whole.iter().position(|byte| *byte == b'\n').expect("two lines") + 1;
        // Even if only the newline is missing, the write did not return.
        for torn in [first + 1, first + 40, whole.len() - 1] {
            fs::write(scratch.ledger(), &whole[..torn]).expect("writable");
            let ledger = Ledger::open(&scratch.ledger(), HOUR).expect("torn, not damaged");
            assert_eq!(ledger.charges(), [Arc::clone(&kept)]);
            charge(&ledger, "torn");
            drop(ledger);
            let reopened = Ledger::open(&scratch.ledger(), HOUR).expect("whole again");
            assert_eq!(reopened.charges().len(), 2);
        }
    }

    #[test]
    fn damage_anywhere_else_is_an_error_that_names_the_line() {
        let scratch = Scratch::new();
        let ledger = Ledger::open(&scratch.ledger(), HOUR).expect("new");
        charge(&ledger, "a");
        drop(ledger);
        let mut file = fs::OpenOptions::new().append(true).open(scratch.ledger()).expect("there");
        file.write_all(b"{\"charge\":{}}\n").expect("writable");
        let error = Ledger::open(&scratch.ledger(), HOUR).expect_err("damaged");
        assert!(matches!(error, LedgerError::Damaged { line: 2, .. }), "{error}");
        assert!(error.to_string().ends_with("is damaged at line 2"), "{error}");
        assert!(error.source().is_some());
    }

    #[test]
    fn two_processes_never_share_a_ledger() {
        let scratch = Scratch::new();
        let first = Ledger::open(&scratch.ledger(), HOUR).expect("new");
        assert!(matches!(Ledger::open(&scratch.ledger(), HOUR), Err(LedgerError::InUse(_))));
        drop(first);
        assert!(Ledger::open(&scratch.ledger(), HOUR).is_ok());
    }

    #[test]
    fn a_claim_that_comes_to_nothing_frees_its_key() {
        let scratch = Scratch::new();
        let ledger = Ledger::open(&scratch.ledger(), HOUR).expect("new");
        let claim = ledger.claim(Some("a".to_owned()));
        assert!(matches!(ledger.claim(Some("a".to_owned())), Claimed::InUse));
        ledger.forget_keys().expect("written");
        assert!(matches!(ledger.claim(Some("a".to_owned())), Claimed::InUse), "still being executed");
        drop(claim);
        charge(&ledger, "a");
        assert!(matches!(ledger.claim(Some("a".to_owned())), Claimed::Stored(_)));
    }

    #[test]
    fn customers_and_their_keys_are_read_back() {
        let scratch = Scratch::new();
        let ledger = Ledger::open(&scratch.ledger(), HOUR).expect("new");
        let terms = CustomerTerms { email: Some("user@example.com".to_owned()), source: Source::Visa };
        let Claimed::New(claim) = ledger.claim(Some("a".to_owned())) else { panic!("a new key") };
        let customer = claim.create_customer(terms).expect("written");
        drop(ledger);
        let ledger = Ledger::open(&scratch.ledger(), HOUR).expect("whole");
        assert_eq!(ledger.customer(&customer.id), Some(customer));
        assert!(matches!(ledger.claim(Some("a".to_owned())), Claimed::Stored(Object::Customer(_))));
    }
}
