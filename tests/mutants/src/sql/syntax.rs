//! Statements as trees, and trees as statements.

use sqlparser::ast::{Statement, Value};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, Tokenizer, Word};

/// One or more statements that are sent together.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// In their order.
    pub statements: Vec<Statement>,
    /// Names that stand for text that the parser cannot read, until the script is printed, and that text.
    stand_ins: Vec<(String, String)>,
}

impl Script {
    /// Reads the text of a script.
    pub fn parse(text: &str) -> Result<Self, ParserError> {
        let mut tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize()?;
        let stand_ins = replace_trigger_arguments(&mut tokens);
        let statements = Parser::new(&PostgreSqlDialect {}).with_tokens(tokens).parse_statements()?;
        Ok(Self { statements, stand_ins })
    }

    /// Returns the text of the script for Postgres.
    pub fn print(&self) -> String {
        let texts: Vec<String> = self.statements.iter().map(ToString::to_string).collect();
        let text = texts.join(";\n");
        self.stand_ins.iter().fold(text, |text, (name, argument)| text.replace(name.as_str(), argument))
    }
}

/// Replaces strings among the arguments of a trigger's function by names, because the parser reads these arguments as
/// types. The strings are put back when the script is printed.
fn replace_trigger_arguments(tokens: &mut [Token]) -> Vec<(String, String)> {
    let mut stand_ins = Vec::new();
    let words: Vec<usize> = (0..tokens.len()).filter(|&at| !matches!(tokens[at], Token::Whitespace(_))).collect();
    for window in words.windows(5) {
        let is = |at: usize, keyword| matches!(&tokens[window[at]], Token::Word(word) if word.keyword == keyword);
        if !is(0, Keyword::EXECUTE) || !is(1, Keyword::FUNCTION) || tokens[window[3]] != Token::LParen {
            continue;
        }
        if let Token::SingleQuotedString(text) = &tokens[window[4]] {
            let name = format!("argument_{}_of_a_trigger", stand_ins.len());
            stand_ins.push((name.clone(), Value::SingleQuotedString(text.clone()).to_string()));
            let word = Word { value: name, quote_style: None, keyword: Keyword::NoKeyword };
            tokens[window[4]] = Token::Word(word);
        }
    }
    stand_ins
}

/// Returns the words of a statement, so that two statements can be compared.
pub fn words(text: &str) -> Vec<String> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize().unwrap_or_default();
    tokens
        .into_iter()
        .filter(|token| !matches!(token, Token::Whitespace(_)))
        .map(|token| token.to_string())
        .collect()
}
