//! The two users that a demonstration starts with.

use atomic_phases::database::{Database, DatabaseError};
use atomic_phases::errors::chain;
use uuid::Uuid;

use crate::{stripe, users};

/// The demonstration's users: e-mail address, and the test card that their Stripe customer pays with.
pub const USERS: [(&str, &str); 2] = [
    ("user@example.com", "tok_visa"),
    // A card that can be saved, and is declined whenever it is charged.
    ("user-bad-source@example.com", "tok_chargeCustomerFail"),
];

/// Why a demonstration's user could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// Stripe did not make the customer.
    #[error("Stripe made no customer for a demonstration's user")]
    Stripe(#[source] stripe::CallError),
    /// The database did not keep the user.
    #[error("cannot store a demonstration's user")]
    Database(#[from] DatabaseError),
}

/// Makes the demonstration's users, each with a Stripe customer of its own, as far as they are missing. A user whose
/// customer this Stripe does not know, because its ledger was deleted or another account is used now, gets a new one.
///
/// The idempotency keys follow from this database's own UUID, so that two processes that seed at once get the same
/// customers.
pub async fn seed(database: &Database, installation: Uuid, stripe: &stripe::Client) -> Result<(), SeedError> {
    const STORE: &str = include_str!("seed_store.sql");
    for (email, source) in USERS {
        let known = users::find_by_email(database, email).await?.map(|user| user.stripe_customer_id);
        if let Some(customer) = &known {
            match stripe.has_customer(customer).await {
                Ok(false) => tracing::warn!(customer, "Stripe does not know this customer; making another"),
                Ok(true) => continue,
                Err(error) => {
                    // Replays, failures and retries work without Stripe, so an outage must not keep the API down.
                    tracing::warn!(error = chain(&error), "cannot ask Stripe for a demonstration's customer");
                    continue;
                }
            }
        }
        let name = format!("{email} after {}", known.unwrap_or_default());
        let key = Uuid::new_v5(&installation, name.as_bytes());
        let customer = stripe.create_customer(email, source, key).await.map_err(SeedError::Stripe)?;
        database.query(STORE, &[&email, &customer]).await?;
    }
    Ok(())
}
