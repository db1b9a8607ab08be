//! Mutants that run together: if all tests are green, each mutant of the group has survived.

use std::collections::{BTreeSet, HashSet};

use super::{Ended, Mutant, Outcome, THREADS, Trial};
use crate::suite::{Failure, Test};

/// Mutants in a group.
const GROUP: usize = 12;

/// A mutant that has not been caught yet.
pub(super) struct Left<'a> {
    /// Its index.
    pub(super) mutant: usize,
    pub(super) passed: HashSet<&'a Test>,
}

impl<'a> Trial<'a> {
    /// Returns groups with at most one mutant of each scope, so that mutants do not affect each other.
    pub(super) fn groups(&self, mutants: &[Mutant], left: Vec<Left<'a>>) -> Vec<Vec<Left<'a>>> {
        let mut groups: Vec<Vec<Left<'a>>> = Vec::new();
        for one in left {
            let apart = |other: &Left<'_>| {
                let (one, other) = (&mutants[one.mutant], &mutants[other.mutant]);
                one.change.scope != other.change.scope
                    || one.statements().all(|at| other.statements().all(|of| of != at))
            };
            let fits = |group: &&mut Vec<Left<'a>>| group.len() < GROUP && group.iter().all(apart);
            match groups.iter_mut().find(fits) {
                Some(group) => group.push(one),
                None => groups.push(vec![one]),
            }
        }
        groups
    }

    pub(super) async fn group(
        &self,
        mutants: &[Mutant],
        mut group: Vec<Left<'a>>,
    ) -> Result<Vec<(usize, Outcome)>, Failure> {
        let mut outcomes = Vec::new();
        loop {
            let members: Vec<&Mutant> = group.iter().map(|left| &mutants[left.mutant]).collect();
            let to_meet = |left: &Left<'a>| {
                let tests = self.touching(&mutants[left.mutant]);
                tests.filter(|test| !left.passed.contains(test)).collect::<Vec<_>>()
            };
            let tests: BTreeSet<&Test> = group.iter().flat_map(to_meet).collect();
            if tests.is_empty() {
                break;
            }
            let tests: Vec<&Test> = tests.into_iter().collect();
            let ran = self.tests(&self.replaced(&members), &tests, THREADS).await?;
            let mut passed = ran.passed;
            if let Ended::Red(test) | Ended::Hung(test) = ran.ended {
                passed.push(test);
                for (at, outcome) in self.culprits(&members, test).await? {
                    self.tell(members[at], &format!("{outcome}"));
                    self.known.ended(members[at].key(), &outcome)?;
                    outcomes.push((group[at].mutant, outcome));
                }
                group.retain(|left| outcomes.iter().all(|(caught, _)| *caught != left.mutant));
            }
            for left in &mut group {
                let new = passed.iter().filter(|test| !left.passed.contains(**test)).copied();
                self.known.keep_passed(mutants[left.mutant].key(), new)?;
                left.passed.extend(&passed);
            }
        }
        for left in group {
            self.tell(&mutants[left.mutant], "SURVIVED");
            outcomes.push((left.mutant, Outcome::Survived));
        }
        Ok(outcomes)
    }

    /// Returns which of these mutants make this test red: tries halves of them, and halves of the halves that do.
    async fn culprits(&self, members: &[&Mutant], test: &'a Test) -> Result<Vec<(usize, Outcome)>, Failure> {
        let touched = |at: &usize| self.touches(members[*at], test);
        let mut parts = vec![(0..members.len()).filter(touched).collect::<Vec<_>>()];
        let mut culprits = Vec::new();
        while let Some(mut part) = parts.pop() {
            if let [at] = part[..] {
                culprits.extend(self.whose(members[at], test).await?.map(|outcome| (at, outcome)));
                continue;
            }
            let other = part.split_off(part.len() / 2);
            for half in [part, other].into_iter().filter(|half| !half.is_empty()) {
                let together: Vec<&Mutant> = half.iter().map(|at| members[*at]).collect();
                // A single mutant is tried when its turn comes.
                let red = half.len() == 1
                    || !matches!(self.tests(&self.replaced(&together), &[test], 1).await?.ended, Ended::Green);
                if red {
                    parts.push(half);
                }
            }
        }
        Ok(culprits)
    }
}
