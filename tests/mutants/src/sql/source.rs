//! The sources of the program's statements: files of SQL, and strings in Rust.

use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

use crate::suite::Failure;

/// A file of SQL, or a string that is a statement or a part of one.
#[derive(Debug, Clone)]
pub struct Fragment {
    /// Its path from the project's root.
    pub file: String,
    /// The file's name without its extension, or the constant or function that contains the string.
    pub name: String,
    /// The text between its placeholders, with each run of white space made one space.
    parts: Vec<String>,
}

/// Returns all fragments in these files and directories of the project.
pub fn fragments(root: &Path, dirs: &[&str]) -> Result<Vec<Fragment>, Failure> {
    let mut fragments = Vec::new();
    let mut paths: Vec<PathBuf> = dirs.iter().map(|dir| root.join(dir)).collect();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                paths.push(entry?.path());
            }
            continue;
        }
        let file = path.strip_prefix(root)?.display().to_string();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("sql") => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                fragments.push(Fragment { file, name, parts: parts(&std::fs::read_to_string(&path)?) });
            }
            Some("rs") => {
                let tokens: TokenStream =
                    std::fs::read_to_string(&path)?.parse().map_err(|error| format!("{file}: {error}"))?;
                strings(tokens, &file, "", false, &mut fragments);
            }
            _ => {}
        }
    }
    Ok(fragments)
}

/// Returns the text with each run of white space made one space.
pub fn single_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Collects the strings. Each is named after the constant or function that contains it, and after the function if both
/// do.
fn strings(tokens: TokenStream, file: &str, name: &str, in_function: bool, fragments: &mut Vec<Fragment>) {
    let (mut name, mut names_function, mut keyword) = (name.to_owned(), in_function, None);
    for token in tokens {
        match token {
            TokenTree::Ident(word) => match word.to_string() {
                word if ["const", "static", "fn"].contains(&word.as_str()) => keyword = Some(word),
                word => {
                    if let Some(keyword) = keyword.take()
                        && !in_function
                    {
                        (name, names_function) = (word, keyword == "fn");
                    }
                }
            },
            TokenTree::Group(group) => strings(group.stream(), file, &name, names_function, fragments),
            TokenTree::Literal(literal) => {
                if let Ok(string) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                    let parts = parts(&string.value());
                    if looks_like_sql(&parts) {
                        fragments.push(Fragment { file: file.to_owned(), name: name.clone(), parts });
                    }
                }
            }
            TokenTree::Punct(_) => {}
        }
    }
}

/// The marks around a place into which another part is put.
const PLACEHOLDERS: [(&str, &str); 2] = [("/*", "*/"), ("{", "}")];

/// Cuts a text at its placeholders.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![text];
    for (open, close) in PLACEHOLDERS {
        parts = parts.into_iter().flat_map(|part| cut(part, open, close)).collect();
    }
    parts.into_iter().map(single_spaced).filter(|part| !part.is_empty()).collect()
}

fn cut<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((part, after)) = rest.split_once(open) {
        parts.push(part);
        rest = after.split_once(close).map_or("", |(_, rest)| rest);
    }
    parts.push(rest);
    parts
}

fn looks_like_sql(parts: &[String]) -> bool {
    let words = ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "WITH ", "SET ", "WHERE ", "AND "];
    parts.iter().map(String::len).sum::<usize>() >= 8
        && parts.iter().any(|part| words.iter().any(|word| part.contains(word)))
}

impl Fragment {
    /// Returns how many bytes of this single-spaced statement are this fragment's; `None` if it is not in it.
    pub fn share_of(&self, statement: &str) -> Option<usize> {
        let mut rest = statement;
        for part in &self.parts {
            rest = &rest[rest.find(part.as_str())? + part.len()..];
        }
        Some(self.parts.iter().map(String::len).sum())
    }

    /// Returns the names of its own CTEs, if it is a template into which other parts are put.
    pub fn ctes_of_template(&self) -> Option<Vec<String>> {
        let is_template = self.file.ends_with(".sql") && self.parts.len() > 1 && self.parts[0].starts_with("WITH ");
        let before = |part: &str| part.split_whitespace().last().unwrap_or_default().to_owned();
        let names = |text: &String| {
            let mut pieces: Vec<&str> = text.split(" AS ").collect();
            pieces.pop();
            pieces.into_iter().map(before).collect::<Vec<_>>()
        };
        is_template.then(|| self.parts.iter().flat_map(names).collect())
    }

    /// Returns whether it is a statement by itself.
    pub fn is_whole(&self) -> bool {
        let beginnings = ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "WITH "];
        self.parts.len() == 1 && beginnings.iter().any(|beginning| self.parts[0].starts_with(beginning))
    }
}
