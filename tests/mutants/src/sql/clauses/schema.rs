//! The clauses of the schema, and the settings of a session.

use sqlparser::ast::{
    ColumnDef, ColumnOption, CreateIndex, CreateTable, CreateTrigger, Expr, ObjectName, SetExpr, Statement,
    TableConstraint, TriggerEvent,
};

use super::{Walk, expressions};

impl Walk {
    /// Statements that are sent together: settings, or the schema.
    pub(super) fn statements(&mut self, statements: &mut Vec<Statement>) {
        let dropped = (0..statements.len()).find(|&at| match &statements[at] {
            Statement::CreateIndex(index) => {
                self.within(named(index.name.as_ref()), |walk| walk.hit("drop the index"))
            }
            Statement::CreateTrigger(trigger) => self.within(&trigger.name, |walk| walk.hit("drop the trigger")),
            statement @ (Statement::Set(_) | Statement::Query(_)) => {
                self.within(statement, |walk| walk.hit(format!("drop {statement}")))
            }
            _ => false,
        });
        if let Some(at) = dropped {
            statements.remove(at);
        }
        for statement in statements {
            match statement {
                Statement::CreateTable(table) => self.within(table.name.clone(), |walk| walk.create_table(table)),
                Statement::CreateIndex(index) => {
                    self.within(named(index.name.as_ref()), |walk| walk.create_index(index));
                }
                Statement::CreateTrigger(trigger) => {
                    self.within(trigger.name.clone(), |walk| walk.create_trigger(trigger));
                }
                Statement::Query(query) => {
                    let text = query.to_string();
                    self.within(text, |walk| {
                        if let SetExpr::Select(select) = query.body.as_mut()
                            && select.projection.len() > 1
                        {
                            walk.drop_one(&mut select.projection, "");
                        }
                        walk.query(query);
                    });
                }
                _ => {}
            }
        }
    }

    fn create_table(&mut self, table: &mut CreateTable) {
        for column in &mut table.columns {
            self.within(column.name.clone(), |walk| walk.column(column));
        }
        let dropped = (0..table.constraints.len()).find(|&at| {
            let constraint = &table.constraints[at];
            self.within(constraint_name(constraint), |walk| walk.hit(format!("drop {constraint}")))
        });
        if let Some(at) = dropped {
            table.constraints.remove(at);
        }
        for constraint in &mut table.constraints {
            let name = constraint_name(constraint);
            if let TableConstraint::Check(check) = constraint {
                self.within(name, |walk| walk.conjunct(&mut check.expr));
            }
        }
    }

    fn column(&mut self, column: &mut ColumnDef) {
        let dropped = (0..column.options.len()).find(|&at| match &column.options[at].option {
            option @ (ColumnOption::NotNull
            | ColumnOption::Default(_)
            | ColumnOption::Unique(_)
            | ColumnOption::PrimaryKey(_)
            | ColumnOption::ForeignKey(_)
            | ColumnOption::Check(_)) => self.hit(format!("drop {option}")),
            _ => false,
        });
        if let Some(at) = dropped {
            column.options.remove(at);
        }
        for option in &mut column.options {
            if let ColumnOption::Check(check) = &mut option.option {
                self.conjunct(&mut check.expr);
            }
        }
    }

    fn create_index(&mut self, index: &mut CreateIndex) {
        self.condition(&mut index.predicate, "WHERE ");
    }

    fn create_trigger(&mut self, trigger: &mut CreateTrigger) {
        for event in &mut trigger.events {
            if let TriggerEvent::Update(columns) = event
                && columns.len() > 1
            {
                self.drop_one(columns, "UPDATE OF ");
            }
        }
        // The syntax requires parentheses, and the parser keeps them.
        let Some(Expr::Nested(inner)) = trigger.condition.take() else { return };
        let mut condition = Some(*inner);
        self.condition(&mut condition, "WHEN ");
        let condition = condition.unwrap_or_else(|| expressions::parse("true"));
        trigger.condition = Some(Expr::Nested(Box::new(condition)));
    }
}

fn named(name: Option<&ObjectName>) -> String {
    name.map_or_else(String::new, ToString::to_string)
}

fn constraint_name(constraint: &TableConstraint) -> String {
    let name = match constraint {
        TableConstraint::Unique(unique) => unique.name.as_ref(),
        TableConstraint::Check(check) => check.name.as_ref(),
        _ => None,
    };
    name.map_or_else(|| constraint.to_string(), ToString::to_string)
}
