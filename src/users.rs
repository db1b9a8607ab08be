//! The users, who may book rides.

use std::cmp::Ordering;
use std::collections::HashMap;

use atomic_phases::database::{Batched, Database, DatabaseError, column};
use tokio_postgres::Row;

/// A user, who may book rides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The row.
    pub id: i64,
    /// The customer that Stripe charges.
    pub stripe_customer_id: String,
}

impl User {
    fn from_row(row: &Row) -> Self {
        Self { id: row.get("id"), stripe_customer_id: row.get("stripe_customer_id") }
    }
}

/// Returns the user with this e-mail address, compared byte for byte.
pub async fn find_by_email(database: &Database, email: &str) -> Result<Option<User>, DatabaseError> {
    database.batched(ByEmail(email.to_owned())).await
}

struct ByEmail(String);

impl Batched for ByEmail {
    type Output = Option<User>;

    fn order(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }

    async fn run(database: &Database, emails: &[Self]) -> Result<Vec<Option<User>>, DatabaseError> {
        const SQL: &str = "
            SELECT u.id, u.stripe_customer_id, u.email
            FROM unnest($1::text[]) AS i (email) JOIN users u ON u.email = i.email";
        let rows = database.query(SQL, &[&column(emails, |email| email.0.as_str())]).await?;
        let users: HashMap<&str, User> = rows.iter().map(|row| (row.get("email"), User::from_row(row))).collect();
        Ok(column(emails, |email| users.get(email.0.as_str()).cloned()))
    }
}
