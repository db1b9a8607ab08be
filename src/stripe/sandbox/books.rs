//! The ledger in memory: everything in the file, with indexes for look-ups.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::record::{Charge, ChargeStatus, Customer, Failure, Refund, RefundFailure};

/// What a request created. Its stored response is made from this alone.
#[derive(Debug, Clone)]
pub(super) enum Object {
    /// By `POST /v1/customers`.
    Customer(Arc<Customer>),
    /// By `POST /v1/charges`, declined ones included.
    Charge(Arc<Charge>),
    /// Nothing, by a `POST /v1/charges` that failed.
    Failure(Arc<Failure>),
    /// By `POST /v1/refunds`.
    Refund(Arc<Refund>),
    /// Nothing, by a `POST /v1/refunds` that failed.
    RefundFailure(Arc<RefundFailure>),
}

impl Object {
    pub(super) fn created_ms(&self) -> u64 {
        match self {
            Self::Customer(customer) => customer.created_ms,
            Self::Charge(charge) => charge.created_ms,
            Self::Failure(failure) => failure.created_ms,
            Self::Refund(refund) => refund.created_ms,
            Self::RefundFailure(failure) => failure.created_ms,
        }
    }

    pub(super) fn idempotency_key(&self) -> Option<&str> {
        match self {
            Self::Customer(customer) => customer.idempotency_key.as_deref(),
            Self::Charge(charge) => charge.idempotency_key.as_deref(),
            Self::Failure(failure) => failure.idempotency_key.as_deref(),
            Self::Refund(refund) => refund.idempotency_key.as_deref(),
            Self::RefundFailure(failure) => failure.idempotency_key.as_deref(),
        }
    }
}

/// Which charges or refunds to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page {
    /// Only charges of this customer, or refunds of this charge.
    pub(super) of: Option<String>,
    /// Only those made in this second of Unix time or later.
    pub(super) created_since: u64,
    /// Only those older than this one.
    pub(super) starting_after: Option<String>,
    /// At most so many.
    pub(super) limit: usize,
}

impl Page {
    /// Takes the page from these, the newest first, and returns whether more follow.
    fn take<'a, T: 'a>(
        &self,
        newest_first: impl Iterator<Item = &'a Arc<T>>,
        created_ms: impl Fn(&T) -> u64,
    ) -> (Vec<Arc<T>>, bool) {
        let mut listed = newest_first.take_while(|one| created_ms(one) / 1000 >= self.created_since);
        (listed.by_ref().take(self.limit).cloned().collect(), listed.next().is_some())
    }
}

/// The customers, charges and refunds. Knows neither keys nor files.
#[derive(Debug, Default)]
pub(super) struct Books {
    customers: HashMap<String, Arc<Customer>>,
    /// Oldest first. The indexes below hold positions in it, and grow with it in the same order.
    charges: Vec<Arc<Charge>>,
    by_id: HashMap<String, usize>,
    by_customer: HashMap<String, Vec<usize>>,
    /// Oldest first.
    refunds: Vec<Arc<Refund>>,
    /// The refunds of each charge: a failed one may be followed by another.
    by_charge: HashMap<String, Vec<usize>>,
}

impl Books {
    pub(super) fn add(&mut self, object: &Object) {
        match object {
            Object::Customer(customer) => {
                self.customers.insert(customer.id.clone(), Arc::clone(customer));
            }
            Object::Charge(charge) => {
                let position = self.charges.len();
                self.charges.push(Arc::clone(charge));
                self.by_id.insert(charge.id.clone(), position);
                self.by_customer.entry(charge.terms.customer.clone()).or_default().push(position);
            }
            Object::Refund(refund) => {
                self.by_charge.entry(refund.terms.charge.clone()).or_default().push(self.refunds.len());
                self.refunds.push(Arc::clone(refund));
            }
            Object::Failure(_) | Object::RefundFailure(_) => {}
        }
    }

    pub(super) fn customer(&self, id: &str) -> Option<&Arc<Customer>> {
        self.customers.get(id)
    }

    pub(super) fn charge(&self, id: &str) -> Option<&Arc<Charge>> {
        self.by_id.get(id).map(|&position| &self.charges[position])
    }

    pub(super) fn refunds(&self) -> &[Arc<Refund>] {
        &self.refunds
    }

    /// Returns the refund of this charge, if there is one.
    pub(super) fn refund_of(&self, charge: &str) -> Option<&Arc<Refund>> {
        self.by_charge.get(charge).and_then(|theirs| theirs.last()).map(|&position| &self.refunds[position])
    }

    /// Does the same as [`Books::page`], for refunds.
    pub(super) fn refund_page(&self, page: &Page) -> Option<(Vec<Arc<Refund>>, bool)> {
        let end = match &page.starting_after {
            None => self.refunds.len(),
            Some(id) => self.refunds.iter().position(|refund| refund.id == *id)?,
        };
        let positions = newest_first(end, page.of.as_ref(), &self.by_charge);
        Some(page.take(positions.map(|position| &self.refunds[position]), |refund| refund.created_ms))
    }

    pub(super) fn charges(&self) -> &[Arc<Charge>] {
        &self.charges
    }

    /// Makes all of it older by `ms` milliseconds. Its order stays.
    pub(super) fn age(&mut self, ms: u64) {
        for charge in &mut self.charges {
            Arc::make_mut(charge).created_ms = charge.created_ms.saturating_sub(ms);
        }
        for refund in &mut self.refunds {
            Arc::make_mut(refund).created_ms = refund.created_ms.saturating_sub(ms);
        }
    }

    /// Gives every pending charge and refund this status.
    pub(super) fn settle(&mut self, status: ChargeStatus) {
        for charge in self.charges.iter_mut().filter(|charge| charge.status == ChargeStatus::Pending) {
            Arc::make_mut(charge).status = status;
        }
        for refund in self.refunds.iter_mut().filter(|refund| refund.status == ChargeStatus::Pending) {
            Arc::make_mut(refund).status = status;
        }
    }

    /// Returns a customer's charges, oldest first.
    pub(super) fn charges_of(&self, customer: &str) -> Vec<Arc<Charge>> {
        let positions = self.by_customer.get(customer).map_or(&[][..], Vec::as_slice);
        positions.iter().map(|&position| Arc::clone(&self.charges[position])).collect()
    }

    /// Returns the charges asked for, newest first, and whether there are more; `None` if `starting_after` is unknown.
    pub(super) fn page(&self, page: &Page) -> Option<(Vec<Arc<Charge>>, bool)> {
        let end = match &page.starting_after {
            None => self.charges.len(),
            Some(id) => *self.by_id.get(id)?,
        };
        let positions = newest_first(end, page.of.as_ref(), &self.by_customer);
        Some(page.take(positions.map(|position| &self.charges[position]), |charge| charge.created_ms))
    }
}

/// Returns the positions before `end`, the highest first: all, or those that an index has for `of`.
fn newest_first<'a>(
    end: usize,
    of: Option<&String>,
    index: &'a HashMap<String, Vec<usize>>,
) -> Box<dyn Iterator<Item = usize> + 'a> {
    let Some(of) = of else { return Box::new((0..end).rev()) };
    let theirs = index.get(of).map_or(&[][..], Vec::as_slice);
    Box::new(theirs[..theirs.partition_point(|&position| position < end)].iter().rev().copied())
}

/// What is known of an idempotency key.
#[derive(Debug)]
pub(super) enum Key {
    /// A request holds it and has not ended yet.
    InUse,
    /// A request with it ended and created this.
    Stored(Object),
}

/// The idempotency keys, which age.
#[derive(Debug, Default)]
pub(super) struct Keys {
    known: HashMap<Arc<str>, Key>,
    /// The stored ones, oldest first, with their objects' `created_ms`.
    ages: VecDeque<(u64, Arc<str>)>,
}

impl Keys {
    /// Forgets the keys stored at or before `until_ms`, and looks one up.
    pub(super) fn look_up(&mut self, key: &str, until_ms: u64) -> Option<&Key> {
        while let Some((stored_ms, old)) = self.ages.front()
            && *stored_ms <= until_ms
        {
            self.known.remove(old);
            self.ages.pop_front();
        }
        self.known.get(key)
    }

    pub(super) fn hold(&mut self, key: &str) {
        self.known.insert(Arc::from(key), Key::InUse);
    }

    /// Gives up a held key as if it had never been used. A stored one stays.
    pub(super) fn release(&mut self, key: &str) {
        if let Some(Key::InUse) = self.known.get(key) {
            self.known.remove(key);
        }
    }

    pub(super) fn store(&mut self, key: &str, object: Object) {
        let key: Arc<str> = Arc::from(key);
        let stored_ms = object.created_ms();
        // When a ledger is read again, a key that was forgotten and then used again is stored twice. The age of its
        // first use must not end its second.
        if let Some(Key::Stored(_)) = self.known.insert(Arc::clone(&key), Key::Stored(object)) {
            self.ages.retain(|(_, old)| *old != key);
        }
        self.ages.push_back((stored_ms, key));
    }

    /// Makes every stored key older by `ms` milliseconds. What is stored under it does not change.
    pub(super) fn age(&mut self, ms: u64) {
        for (stored_ms, _) in &mut self.ages {
            *stored_ms = stored_ms.saturating_sub(ms);
        }
    }

    /// Forgets every stored key, however young; those in use stay in use.
    pub(super) fn forget_stored(&mut self) {
        self.known.retain(|_, key| matches!(key, Key::InUse));
        self.ages.clear();
    }
}
