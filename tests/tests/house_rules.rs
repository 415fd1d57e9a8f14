//! The rules of the house that a machine can check, read from the sources themselves.
//!
//! Each rule is a function from a file to what is wrong with it. One test per rule runs it over the whole repository,
//! and one shows it a made-up file that breaks it: a rule that cannot fail guards nothing.

use std::path::{Path, PathBuf};

/// Which of the workspace's packages each may name, in `[dependencies]` and in `[dev-dependencies]`.
const MAY_DEPEND_ON: [(&str, &[&str]); 8] = [
    ("wire", &[]),
    ("host", &["milonga-wire"]),
    ("sequencer", &["milonga-host", "milonga-wire"]),
    ("logunit", &["milonga-host", "milonga-wire"]),
    ("layout", &["milonga-host", "milonga-wire"]),
    ("client", &["milonga-host", "milonga-wire"]),
    (
        "milonga",
        &[
            "milonga-client",
            "milonga-host",
            "milonga-layout",
            "milonga-logunit",
            "milonga-sequencer",
            "milonga-wire",
        ],
    ),
    (
        "tests",
        &[
            "milonga",
            "milonga-client",
            "milonga-host",
            "milonga-layout",
            "milonga-logunit",
            "milonga-sequencer",
            "milonga-wire",
        ],
    ),
];

/// Where decisions are made: nothing but the wire's nouns, no machine. A path that ends in `/` is a folder.
const PURE: [&str; 8] = [
    "wire/src/",
    "sequencer/src/counter.rs",
    "logunit/src/unit.rs",
    "logunit/src/unit/",
    "layout/src/acceptor.rs",
    "layout/src/acceptor/",
    "client/src/reconfigure/plan.rs",
    "client/src/transaction/outcome.rs",
];

/// Code that runs on simulated machines as well as on real ones.
const SIMULATED: [&str; 5] = [
    "wire/src/",
    "sequencer/src/",
    "logunit/src/",
    "layout/src/",
    "client/src/",
];

const LINES_MAX: usize = 700;

/// Files over [`LINES_MAX`], each with its reason.
const LONG: [(&str, &str); 7] = [
    (
        "host/src/quic.rs",
        "the one file that names quinn; all that does not is in quic/",
    ),
    (
        "host/src/tls.rs",
        "both ends of one handshake, with the tests of every way it fails",
    ),
    (
        "host/src/certificates.rs",
        "issuing and showing, with their tests",
    ),
    (
        "host/src/quic/tests.rs",
        "the transport's sentences, on real sockets",
    ),
    (
        "logunit/src/unit/tests.rs",
        "a sentence per rule of the unit",
    ),
    ("logunit/tests/store.rs", "a sentence per rule of the store"),
    (
        "logunit/tests/store_model.rs",
        "one machine, and all that it is held to",
    ),
];

/// A file of the repository.
struct File {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn is_rust(&self) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|extension| extension == "rs")
    }

    fn lies_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| {
            if place.ends_with('/') {
                self.path.starts_with(place)
            } else {
                self.path == *place
            }
        })
    }

    /// Whether all of it is test code: a folder of tests, benches or examples, the crate of tests, or a module of tests.
    fn is_test(&self) -> bool {
        let mut folders = self.path.split('/').rev();
        let name = folders.next().unwrap_or_default();
        self.path.starts_with("tests/")
            || matches!(name, "tests.rs" | "testing.rs" | "reference.rs")
            || name.ends_with("_tests.rs")
            || folders.any(|folder| {
                matches!(
                    folder,
                    "tests" | "testing" | "benches" | "examples" | "fuzz"
                )
            })
    }

    /// Its code: comments and the insides of strings blanked, lines kept.
    fn code(&self) -> String {
        code_of(&self.text)
    }

    /// Its code before the tests that stand at its end; nothing of a file of tests.
    fn code_without_tests(&self) -> String {
        if self.is_test() {
            return String::new();
        }
        let code = self.code();
        let opens_tests = |after: &str| {
            let line = after.lines().nth(1).unwrap_or_default();
            contains_word(line, "mod") && line.contains('{')
        };
        let end = code
            .match_indices("#[cfg(test)]")
            .map(|(at, _)| at)
            .find(|at| opens_tests(&code[*at..]));
        code[..end.unwrap_or(code.len())].to_owned()
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }

    /// One finding per line of `code` that contains one of `words`.
    fn lines_with(&self, code: &str, words: &[&str], why: &str) -> Vec<String> {
        code.lines()
            .enumerate()
            .filter_map(|(index, line)| {
                let word = words.iter().find(|word| contains_word(line, word))?;
                Some(self.at(index + 1, &format!("`{word}`: {why}")))
            })
            .collect()
    }
}

/// Whether `line` contains `word` where no identifier goes on before or after it.
fn contains_word(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let open = |end: Option<char>, edge: Option<char>| {
            !(end.is_some_and(part_of_name) && edge.is_some_and(part_of_name))
        };
        open(before, word.chars().next()) && open(after, word.chars().next_back())
    })
}

/// Blanks comments and the insides of string and character literals.
fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let next = chars.get(at + 1).copied();
        let end = match chars[at] {
            '/' if next == Some('/') => find(&chars, at, |rest| rest.starts_with(&['\n'])),
            '/' if next == Some('*') => {
                find(&chars, at + 2, |rest| rest.starts_with(&['*', '/'])) + 2
            }
            '"' => end_of_string(&chars, at),
            'r' if starts_raw_string(&chars, at) => end_of_raw_string(&chars, at),
            '\'' if next == Some('\\') => {
                find(&chars, at + 3, |rest| rest.starts_with(&['\''])) + 1
            }
            '\'' if chars.get(at + 2) == Some(&'\'') => at + 3,
            plain => {
                code.push(plain);
                at += 1;
                continue;
            }
        };
        for blanked in &chars[at..end.min(chars.len())] {
            code.push(if *blanked == '\n' { '\n' } else { ' ' });
        }
        at = end;
    }
    code
}

fn find(chars: &[char], from: usize, found: impl Fn(&[char]) -> bool) -> usize {
    (from..chars.len())
        .find(|at| found(&chars[*at..]))
        .unwrap_or(chars.len())
}

fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn starts_raw_string(chars: &[char], at: usize) -> bool {
    let inside_name =
        at > 0 && (chars[at - 1].is_alphanumeric() && chars[at - 1] != 'b' || chars[at - 1] == '_');
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    !inside_name && chars.get(at + 1 + hashes) == Some(&'"')
}

fn end_of_raw_string(chars: &[char], start: usize) -> usize {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    let mut close = vec!['"'];
    close.extend(std::iter::repeat_n('#', hashes));
    find(chars, start + hashes + 2, |rest| rest.starts_with(&close)) + close.len()
}

/// Design, imports: tests → all; milonga → client, services, host, wire; client and services → host, wire; host → wire.
fn packages_depend_downwards(file: &File) -> Vec<String> {
    let Some(folder) = file.path.strip_suffix("/Cargo.toml") else {
        return vec![];
    };
    let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(name, _)| *name == folder) else {
        return vec![file.at(1, "a package that the table of imports does not know")];
    };
    let manifest: toml::Table = match file.text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![file.at(1, &error.to_string())],
    };
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(*section)?.as_table())
        .flat_map(|section| section.keys())
        .filter(|name| name.starts_with("milonga") && !allowed.contains(&name.as_str()))
        .map(|name| file.at(1, &format!("{folder} must not depend on {name}")))
        .collect()
}

fn only_the_transport_names_quinn(file: &File) -> Vec<String> {
    if !file.is_rust() || file.lies_in(&["host/src/quic.rs", "host/src/quic/"]) {
        return vec![];
    }
    let words = ["quinn", "quinn_proto", "quinn_udp"];
    file.lines_with(&file.code(), &words, "only host/src/quic.rs names quinn")
}

fn only_the_host_names_the_file_system(file: &File) -> Vec<String> {
    let may = [
        "host/src/fs.rs",
        "host/src/certificates.rs",
        "client/src/config.rs", // Reads the file that says where the cluster is.
    ];
    let bound = file.lies_in(&SIMULATED) || file.lies_in(&["host/src/"]);
    if !file.is_rust() || !bound || file.lies_in(&may) {
        return vec![];
    }
    let words = ["std::fs", "tokio::fs", "rustix::fs", "memmap2"];
    let why = "the file system comes from milonga_host::Disk";
    file.lines_with(&file.code_without_tests(), &words, why)
}

fn time_and_chance_come_from_the_host(file: &File) -> Vec<String> {
    let bound = file.lies_in(&SIMULATED) || file.lies_in(&["host/src/"]);
    let may = [
        "host/src/clock.rs",
        "host/src/random.rs",
        "host/src/quic.rs", // Hands quinn the node's own wall clock, in the type it asks for.
    ];
    if !file.is_rust() || !bound || file.lies_in(&may) {
        return vec![];
    }
    let words = [
        "Instant::now",
        "SystemTime",
        "tokio::time",
        "rand",
        "getrandom",
    ];
    let why = "time and chance come from milonga_host::{Clock, Random}";
    file.lines_with(&file.code_without_tests(), &words, why)
}

fn simulated_code_starts_no_threads(file: &File) -> Vec<String> {
    if !file.is_rust() || !file.lies_in(&SIMULATED) {
        return vec![];
    }
    let words = [
        "std::thread",
        "thread::spawn",
        "spawn_blocking",
        "block_in_place",
        "tokio::spawn",
    ];
    let why = "what runs under simulation starts tasks through milonga_host::Tasks only";
    file.lines_with(&file.code_without_tests(), &words, why)
}

fn decisions_know_no_machine(file: &File) -> Vec<String> {
    if !file.is_rust() || !file.lies_in(&PURE) {
        return vec![];
    }
    let words = ["milonga_host", "tokio", "async fn", "std::net", "println!"];
    let why = "decisions are plain synchronous code on the wire's nouns";
    file.lines_with(&file.code_without_tests(), &words, why)
}

fn every_select_is_biased(file: &File) -> Vec<String> {
    if !file.is_rust() {
        return vec![];
    }
    let code = file.code();
    code.match_indices("select! {")
        .filter(|(at, start)| !code[at + start.len()..].trim_start().starts_with("biased;"))
        .map(|(at, _)| {
            let line = code[..at].lines().count();
            file.at(
                line,
                "`select!` without `biased;`: a seed could not repeat the run",
            )
        })
        .collect()
}

fn nothing_is_left_unfinished(file: &File) -> Vec<String> {
    if !file.is_rust() {
        return vec![];
    }
    let macros = ["todo!", "unimplemented!", "dbg!"];
    let mut findings = file.lines_with(&file.code(), &macros, "finish it");
    findings.extend(file.lines_with(
        &file.text,
        &["FIXME", "TODO", "XXX"],
        "finish it, or say what is",
    ));
    findings
}

fn only_tests_unwrap(file: &File) -> Vec<String> {
    if !file.is_rust() || file.is_test() {
        return vec![];
    }
    let words = [".unwrap()", ".unwrap_err()"];
    file.lines_with(
        &file.code_without_tests(),
        &words,
        "`expect` says why it cannot fail",
    )
}

fn every_file_says_what_it_is(file: &File) -> Vec<String> {
    let silent = file.is_rust() && !file.text.starts_with("//! ");
    silent
        .then(|| file.at(1, "starts with no `//!`"))
        .into_iter()
        .collect()
}

fn no_file_is_long_without_a_reason(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    let reason = LONG.iter().any(|(path, _)| *path == file.path);
    match (file.is_rust(), lines > LINES_MAX) {
        (true, true) if !reason => vec![file.at(lines, &format!("{lines} lines and no reason"))],
        (true, false) if reason => vec![file.at(lines, "short again: take it from the list")],
        _ => vec![],
    }
}

/// One word per thing: the other words for a term, a layout, a rank or a refusal are not names in the code.
fn things_have_one_name(file: &File) -> Vec<String> {
    const INSTEAD: [(&str, &str); 5] = [
        ("epoch", "term"),
        ("projection", "layout"),
        ("ballot", "rank"),
        ("nack", "refusal"),
        ("lsn", "position"),
    ];
    if !file.is_rust() {
        return vec![];
    }
    let code = file.code();
    let mut findings = vec![];
    for (index, line) in code.lines().enumerate() {
        // The Unix epoch has no other name.
        let line = line.replace("unix_epoch", "");
        let names = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        for part in names.flat_map(parts_of_name) {
            if let Some((_, word)) = INSTEAD.iter().find(|(other, _)| *other == part) {
                findings.push(file.at(index + 1, &format!("`{part}`: the word is {word}")));
            }
        }
        let is_map = file.path.starts_with("client/src/object/"); // There `get` is the verb.
        if contains_word(&line, "Manager") || (line.contains("fn get_") && !is_map) {
            findings.push(file.at(index + 1, "a name that says nothing: `Manager`, `get_`"));
        }
    }
    let name = file.path.rsplit('/').next().unwrap_or_default();
    if matches!(
        name,
        "utils.rs" | "util.rs" | "helpers.rs" | "misc.rs" | "common.rs"
    ) {
        findings.push(file.at(1, "a file is named after what it is about"));
    }
    findings
}

/// The words in a name of any style, in lower case; names in capitals (`UNIX_EPOCH`) are the standard library's.
fn parts_of_name(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    if name.chars().all(|c| !c.is_lowercase()) {
        return parts;
    }
    for c in name.chars() {
        if c == '_' || c.is_uppercase() {
            parts.push(String::new());
        }
        if c != '_' {
            let part = parts.last_mut().expect("there is one from the start");
            part.extend(c.to_lowercase());
        }
    }
    parts
}

/// The text speaks of the project alone, not of a machine or a place where it was written.
fn the_text_speaks_of_the_project_alone(file: &File) -> Vec<String> {
    let words = [
        "/work/",
        "/farm/",
        "/tmp/issues",
        "subagent",
        "chatgpt",
        "claude",
    ];
    file.text
        .lines()
        .enumerate()
        .filter_map(|(index, line)| {
            let line = line.to_lowercase();
            let word = words.iter().find(|word| line.contains(*word))?;
            Some(file.at(
                index + 1,
                &format!("`{word}` has no meaning to a reader of the project"),
            ))
        })
        .collect()
}

/// Every text file of the repository but this one, which has to name what it forbids.
fn repository() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = vec![];
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(&folder)
            .expect("a folder of the repository is readable")
            .map(|entry| entry.expect("and so is what it lists").path())
            .collect();
        entries.sort();
        for path in entries {
            let name = path
                .file_name()
                .expect("it was listed by name")
                .to_string_lossy()
                .into_owned();
            let hidden = name.starts_with('.') && !matches!(name.as_str(), ".ci" | ".github");
            if path.is_symlink() || hidden || name == "target" || name == "node_modules" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                let path = path
                    .strip_prefix(&root)
                    .expect("it lies below")
                    .to_string_lossy();
                files.push(File::new(&path.replace('\\', "/"), &text));
            }
        }
    }
    files.retain(|file| file.path != "tests/tests/house_rules.rs");
    assert!(files.len() > 20, "the repository was not found");
    files
}

/// Runs one rule over the repository.
fn holds(rule: fn(&File) -> Vec<String>) {
    let findings: Vec<String> = repository().iter().flat_map(rule).collect();
    let count = findings.len();
    assert!(
        findings.is_empty(),
        "{count} findings:\n{}",
        findings.join("\n")
    );
}

/// Shows a rule a file that breaks it once, and one that does not.
fn can_fail(rule: fn(&File) -> Vec<String>, path: &str, breaks: &str, keeps: &str) {
    assert_eq!(rule(&File::new(path, breaks)).len(), 1, "{path}: {breaks}");
    assert_eq!(rule(&File::new(path, keeps)), Vec::<String>::new());
}

macro_rules! rule {
    ($rule:ident, $fails:ident, $path:literal, $breaks:expr, $keeps:expr) => {
        #[test]
        fn $rule() {
            holds(super::$rule);
        }

        #[test]
        fn $fails() {
            can_fail(super::$rule, $path, $breaks, $keeps);
        }
    };
}

mod rules {
    use super::{can_fail, holds};

    rule!(
        packages_depend_downwards,
        a_service_that_imports_the_client_is_found,
        "layout/Cargo.toml",
        "[dev-dependencies]\nmilonga-client.workspace = true\n",
        "[dependencies]\nmilonga-wire.workspace = true\nbytes.workspace = true\n"
    );
    rule!(
        only_the_transport_names_quinn,
        a_second_file_that_names_quinn_is_found,
        "host/src/net.rs",
        "use quinn::Endpoint;\n",
        "// What quinn does.\nlet quinns = \"quinn\";\n"
    );
    rule!(
        only_the_host_names_the_file_system,
        a_server_that_opens_a_file_is_found,
        "logunit/src/server.rs",
        "fn f() { std::fs::read(p); }\n",
        "fn f() {}\n\n#[cfg(test)]\nmod tests { use std::fs; }\n"
    );
    rule!(
        time_and_chance_come_from_the_host,
        a_client_that_asks_the_machine_for_the_time_is_found,
        "client/src/log.rs",
        "let now = std::time::Instant::now();\n",
        "let operand = clock.now();\n"
    );
    rule!(
        simulated_code_starts_no_threads,
        a_server_with_a_thread_is_found,
        "sequencer/src/server.rs",
        "tokio::task::spawn_blocking(work);\n",
        "host.tasks.spawn(work);\n"
    );
    rule!(
        decisions_know_no_machine,
        a_decision_that_waits_is_found,
        "sequencer/src/counter.rs",
        "pub async fn seal() {}\n",
        "pub fn seal() {}\n"
    );
    rule!(
        every_select_is_biased,
        a_select_that_draws_lots_is_found,
        "client/src/log.rs",
        "tokio::select! {\n    () = a => {}\n}\n",
        "tokio::select! {\n    biased;\n    () = a => {}\n}\n"
    );
    rule!(
        nothing_is_left_unfinished,
        something_unfinished_is_found,
        "client/src/log.rs",
        "fn f() { todo!() }\n",
        "fn f() {}\n"
    );
    rule!(
        only_tests_unwrap,
        an_unwrap_in_a_server_is_found,
        "client/src/log.rs",
        "fn f() { g().unwrap() }\n",
        "/// `x.unwrap()`\nfn f() { g().unwrap_or(1) }\n#[cfg(test)]\nmod tests { fn t() { g().unwrap() } }\n"
    );
    rule!(
        every_file_says_what_it_is,
        a_file_without_a_word_about_itself_is_found,
        "client/src/log.rs",
        "use std::fmt;\n",
        "//! The log.\n"
    );
    rule!(
        no_file_is_long_without_a_reason,
        a_long_file_is_found,
        "client/src/log.rs",
        &"\n".repeat(super::LINES_MAX + 1),
        &"\n".repeat(super::LINES_MAX)
    );
    rule!(
        things_have_one_name,
        a_second_word_for_a_term_is_found,
        "client/src/log.rs",
        "fn f(sealed_epoch: u64) {}\n",
        "// An epoch in CORFU.\nlet since = UNIX_EPOCH;\n"
    );
    rule!(
        the_text_speaks_of_the_project_alone,
        a_path_of_a_machine_is_found,
        "docs/index.md",
        "See /work/main.\n",
        "It works.\n"
    );
}

/// The rules read code, so what only looks like code must be gone, and nothing else.
#[test]
fn comments_and_strings_are_no_code() {
    let text = "a /* b */ c // d\n\"e \\\" f\" 'g' '\\'' r#\"h \" i\"# j::<'k>(b\"l\") r_m\n";
    let code = code_of(text);

    let letters: String = code.chars().filter(|c| c.is_alphanumeric()).collect();
    assert_eq!(letters, "acjkbrm");
    assert_eq!(code.lines().count(), text.lines().count());
}
