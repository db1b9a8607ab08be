//! One statement for many requests: while a batch is under way, those who want the same statement queue up, and go
//! together in the next.
//!
//! What a statement costs is mostly the same for one row and for a hundred: the round trip, the wake-ups, the flush. So
//! the busier the database is, the cheaper each request becomes; and a request that comes alone waits for nobody.
//!
//! Nobody above can tell a batch from a statement of one's own. A row that the database refuses fails alone, because the
//! batch is halved until it stands by itself; and whoever stops waiting takes nobody along, because what goes together
//! does so in a task of its own. A statement for its caller alone needs no task, and gets none: with one client at a
//! time, the wake-ups that this saves are a twentieth of a ride.

use std::any::{Any, TypeId};
use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::{Database, DatabaseError};

/// More rows in a statement make it no cheaper for each, and everybody in it wait for the last.
const LARGEST: usize = 128;
/// A second batch starts beside one that gets on only if it is full, and at most so many are under way: smaller ones cost
/// more than they save (measured: two of any size book a tenth less at 256 connections), and each takes a connection.
const UNDER_WAY: usize = 4;
/// A batch that has been under way for so long hangs, on a row that somebody has locked or on a network, and nobody waits for
/// it who comes from now on.
const HANGS: Duration = Duration::from_millis(100);
/// How often a batch is run again that met a deadlock or a serialization failure, which undo it as a whole.
const TRIES: usize = 3;

/// What one caller wants of a statement that takes arrays.
pub trait Batched: Send + Sync + Sized + 'static {
    /// What the caller gets.
    type Output: Send + 'static;

    /// Which statement it is, where one type serves several: only items of the same go together.
    fn statement(&self) -> &'static str {
        ""
    }

    /// The order of rows within a batch. Statements that lock rows lock them in this order, so that two batches are never
    /// in a deadlock.
    fn order(&self, other: &Self) -> Ordering;

    /// Runs one statement for all of them and returns an output for each, in their order.
    fn run(
        database: &Database,
        items: &[Self],
    ) -> impl Future<Output = Result<Vec<Self::Output>, DatabaseError>> + Send;
}

/// One parameter of a batch's statement: an array with an element for each item.
pub fn column<T, C>(items: impl IntoIterator<Item = T>, value: impl FnMut(T) -> C) -> Vec<C> {
    items.into_iter().map(value).collect()
}

impl Database {
    /// Runs `item`'s statement, together with whoever else wants the same one just now.
    ///
    /// When the caller is cancelled, the statement may still be carried out.
    pub async fn batched<T: Batched>(&self, item: T) -> Result<T::Output, DatabaseError> {
        match self.queues.of(&item).join(item, self) {
            Place::Turn(item, _turn) => {
                let outputs = run(self, std::slice::from_ref(&item)).await?;
                Ok(outputs.into_iter().next().expect("an output for each item"))
            }
            // Without an answer only if the statement's code panicked, which has been said.
            Place::InLine(answer) => answer.await.unwrap_or(Err(DatabaseError::Lost(None))),
        }
    }
}

/// The queues, one for each statement.
#[derive(Debug, Default)]
pub(super) struct Queues(RwLock<HashMap<Kind, Arc<dyn Any + Send + Sync>>>);

/// An item's type, and where its statement's text lies.
type Kind = (TypeId, usize);

impl Queues {
    fn of<T: Batched>(&self, item: &T) -> Arc<Queue<T>> {
        let kind = (TypeId::of::<T>(), item.statement().as_ptr().addr());
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned();
        let queue = known.unwrap_or_else(|| {
            let mut queues = self.0.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(queues.entry(kind).or_insert_with(|| Arc::new(Queue::<T>::default())))
        });
        queue.downcast().expect("kept under its own type")
    }
}

/// Those who wait for a statement.
struct Queue<T: Batched>(Mutex<State<T>>);

struct State<T: Batched> {
    waiting: VecDeque<Waiting<T>>,
    /// A number for each batch, and when it began.
    under_way: Vec<(u64, Instant)>,
    last: u64,
}

struct Waiting<T: Batched> {
    item: T,
    answer: oneshot::Sender<Result<T::Output, DatabaseError>>,
}

impl<T: Batched> Default for Queue<T> {
    fn default() -> Self {
        Self(Mutex::new(State { waiting: VecDeque::new(), under_way: Vec::new(), last: 0 }))
    }
}

/// What joining a queue leads to.
enum Place<T: Batched> {
    /// To run the statement at once.
    Turn(T, Turn<T>),
    /// To go with the next batch.
    InLine(oneshot::Receiver<Result<T::Output, DatabaseError>>),
}

/// One of the places of [`UNDER_WAY`]. However its holder ends, those who came meanwhile go next.
struct Turn<T: Batched> {
    number: u64,
    queue: Arc<Queue<T>>,
    database: Database,
}

impl<T: Batched> Drop for Turn<T> {
    fn drop(&mut self) {
        if let Some(batch) = self.queue.next_batch(self.number) {
            tokio::spawn(Arc::clone(&self.queue).work(self.number, batch, self.database.clone()));
        }
    }
}

impl<T: Batched> Queue<T> {
    fn join(self: Arc<Self>, item: T, database: &Database) -> Place<T> {
        let mut state = self.state();
        if state.waiting.is_empty() && state.has_room() {
            let number = state.begin();
            drop(state);
            return Place::Turn(item, Turn { number, queue: self, database: database.clone() });
        }
        let (answer, answered) = oneshot::channel();
        state.waiting.push_back(Waiting { item, answer });
        if state.has_room() {
            let (number, batch) = (state.begin(), state.take());
            drop(state);
            tokio::spawn(self.work(number, batch, database.clone()));
        }
        Place::InLine(answered)
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This batch and those after it, until nobody waits.
    async fn work(self: Arc<Self>, number: u64, batch: Vec<Waiting<T>>, database: Database) {
        let mut next = Some(batch);
        while let Some(batch) = next {
            // A panic has been printed, and those in the batch see their senders dropped; the next batch must go on.
            let _ = AssertUnwindSafe(serve(batch, &database)).catch_unwind().await;
            next = self.next_batch(number);
        }
    }

    /// Who goes next in this one's place. Without anybody, or with fewer than are worth a batch, the place is free.
    fn next_batch(&self, number: u64) -> Option<Vec<Waiting<T>>> {
        let mut state = self.state();
        state.under_way.retain(|(other, _)| *other != number);
        if state.waiting.is_empty() || !state.has_room() {
            return None;
        }
        state.under_way.push((number, Instant::now()));
        Some(state.take())
    }
}

impl<T: Batched> State<T> {
    /// Whether a batch may begin: none gets on, or a full one waits; and not too many are under way.
    fn has_room(&self) -> bool {
        let gets_on = |(_, began): &(u64, Instant)| began.elapsed() < HANGS;
        self.under_way.len() < UNDER_WAY && (self.waiting.len() >= LARGEST || !self.under_way.iter().any(gets_on))
    }

    fn begin(&mut self) -> u64 {
        self.last += 1;
        self.under_way.push((self.last, Instant::now()));
        self.last
    }

    fn take(&mut self) -> Vec<Waiting<T>> {
        let size = self.waiting.len().min(LARGEST);
        self.waiting.drain(..size).collect()
    }
}

async fn serve<T: Batched>(mut batch: Vec<Waiting<T>>, database: &Database) {
    batch.sort_by(|a, b| a.item.order(&b.item));
    let (items, answers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|waiting| (waiting.item, waiting.answer)).unzip();
    let mut answers: Vec<_> = answers.into_iter().map(Some).collect();
    let mut parts: Vec<_> = std::iter::once(0..items.len()).collect();
    while let Some(part) = parts.pop() {
        match run::<T>(database, &items[part.clone()]).await {
            Ok(outputs) => {
                assert_eq!(outputs.len(), part.len(), "an output for each item");
                for (answer, output) in answers[part].iter_mut().zip(outputs) {
                    tell(answer, Ok(output));
                }
            }
            Err(error) if part.len() > 1 && error.blames_a_row() => parts.extend(halves(part)),
            Err(error) => answers[part].iter_mut().for_each(|answer| tell(answer, Err(error.clone()))),
        }
    }
}

async fn run<T: Batched>(database: &Database, items: &[T]) -> Result<Vec<T::Output>, DatabaseError> {
    let mut tries = 1;
    loop {
        match T::run(database, items).await {
            Err(error) if error.is_conflict() && tries < TRIES => tries += 1,
            done => return done,
        }
    }
}

/// Who has stopped waiting need not be told.
fn tell<O>(answer: &mut Option<oneshot::Sender<Result<O, DatabaseError>>>, output: Result<O, DatabaseError>) {
    if let Some(answer) = answer.take() {
        let _ = answer.send(output);
    }
}

fn halves(part: Range<usize>) -> [Range<usize>; 2] {
    let middle = part.start.midpoint(part.end);
    [middle..part.end, part.start..middle]
}
