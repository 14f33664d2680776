//! `completion`: scripts that complete a tool's commands and flags in a shell, made of its table of commands.
//!
//! Promises: a script knows every command and flag of the table, and completes without running the tool. Words that are
//! neither (keys, values, files) are left to the shell.

use crate::exit::Failure;
use crate::flags::{Flag, Kind};

/// The shells, in the order of the usage text.
pub(crate) const SHELLS: [&str; 4] = ["bash", "zsh", "fish", "powershell"];

/// A command, as its tool's table has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    /// Its words.
    pub(crate) path: &'static [&'static str],
    /// A line about it.
    pub(crate) help: &'static str,
    /// Its own flags; those of every command come on top.
    pub(crate) flags: &'static [Flag],
}

/// A place on a command line: the words of commands before it, and what may follow.
struct Place {
    words: Vec<&'static str>,
    next: Vec<(&'static str, &'static str)>,
    flags: Vec<&'static Flag>,
}

/// The script of a tool for a shell.
///
/// # Errors
/// Code 128: it is no shell, or one without a script.
pub(crate) fn script(
    tool: &str,
    shell: &[u8],
    commands: &[Entry],
    globals: &'static [Flag],
) -> Result<String, Failure> {
    let places = places(commands, globals);
    match shell {
        b"bash" => Ok(bash(tool, &places)),
        b"zsh" => Ok(zsh(tool, &places)),
        b"fish" => Ok(fish(tool, &places)),
        b"powershell" => {
            Err(Failure::bad_args("there is no script for powershell; bash, zsh and fish have one"))
        }
        other => Err(Failure::bad_args(format_args!(
            "invalid argument {:?} for \"{tool} completion\"",
            String::from_utf8_lossy(other)
        ))),
    }
}

fn places(commands: &[Entry], globals: &'static [Flag]) -> Vec<Place> {
    let mut all: Vec<Vec<&'static str>> = vec![Vec::new()];
    for command in commands {
        for depth in 1..=command.path.len() {
            let words = command.path[..depth].to_vec();
            if !all.contains(&words) {
                all.push(words);
            }
        }
    }
    let place = |words: Vec<&'static str>| {
        let mut next: Vec<(&str, &str)> = Vec::new();
        for command in commands.iter().filter(|command| command.path.starts_with(&words)) {
            let Some(word) = command.path.get(words.len()) else { continue };
            let help = if command.path.len() == words.len() + 1 { command.help } else { "" };
            if !next.iter().any(|(known, _)| known == word) {
                next.push((word, help));
            }
        }
        if words == ["completion"] {
            next.extend(SHELLS[..3].iter().map(|shell| (*shell, "")));
        }
        let own =
            commands.iter().find(|command| command.path == words).map_or(&[][..], |command| command.flags);
        Place { words, next, flags: own.iter().chain(globals).collect() }
    };
    all.into_iter().map(place).collect()
}

/// Every way to write a flag that is followed by a value of its own.
fn valued(places: &[Place]) -> String {
    let mut all: Vec<String> = Vec::new();
    for flag in places.iter().flat_map(|place| &place.flags).filter(|flag| flag.kind != Kind::Bool) {
        let short = flag.short.map(|short| format!("-{short}"));
        for spelling in [Some(format!("--{}", flag.name)), short].into_iter().flatten() {
            if !all.contains(&spelling) {
                all.push(spelling);
            }
        }
    }
    all.join("|")
}

/// The words of the commands, each with those before it, for a `case`.
fn known(places: &[Place]) -> String {
    let known: Vec<String> =
        places[1..].iter().map(|place| format!("\" {}\"", place.words.join(" "))).collect();
    known.join("|")
}

fn spellings(flags: &[&'static Flag]) -> String {
    let of = |flag: &&Flag| format!("--{}", flag.name);
    flags.iter().map(of).collect::<Vec<_>>().join(" ")
}

fn key(place: &Place) -> String {
    place.words.iter().map(|word| format!(" {word}")).collect()
}

fn bash(tool: &str, places: &[Place]) -> String {
    let mut cases = String::new();
    for place in places {
        let next: Vec<&str> = place.next.iter().map(|(word, _)| *word).collect();
        cases += &format!(
            "        \"{}\")\n            words=\"{}\"\n            flags=\"{}\"\n            ;;\n",
            key(place),
            next.join(" "),
            spellings(&place.flags)
        );
    }
    format!(
        r#"# bash completion for {tool}: source <({tool} completion bash)

_{tool}() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" at="" words="" flags="" i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${{COMP_WORDS[i]}}" in
            {valued})
                [[ "${{COMP_WORDS[i + 1]}}" == "=" ]] && ((i++))
                ((i++))
                ((i < COMP_CWORD)) || return 0
                continue
                ;;
            -*) continue ;;
        esac
        case "$at ${{COMP_WORDS[i]}}" in
            {known}) at="$at ${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$at" in
{cases}    esac
    if [[ "$cur" == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    else
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    fi
}}

complete -o default -F _{tool} {tool}
"#,
        valued = valued(places),
        known = known(places),
    )
}

/// A text within single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"'\''"))
}

fn zsh(tool: &str, places: &[Place]) -> String {
    let described = |name: &str, help: &str| quoted(&format!("{}:{help}", name.replace(':', r"\:")));
    let mut cases = String::new();
    for place in places {
        let next: Vec<String> = place.next.iter().map(|(word, help)| described(word, help)).collect();
        let flags: Vec<String> =
            place.flags.iter().map(|flag| described(&format!("--{}", flag.name), flag.help)).collect();
        cases += &format!(
            "        \"{}\")\n            next=({})\n            flags=({})\n            ;;\n",
            key(place),
            next.join(" "),
            flags.join(" ")
        );
    }
    format!(
        r#"#compdef {tool}
# zsh completion for {tool}: source <({tool} completion zsh)

_{tool}() {{
    local at="" i
    local -a next flags
    for ((i = 2; i < CURRENT; i++)); do
        case "${{words[i]}}" in
            {valued})
                ((i++))
                if ((i >= CURRENT)); then
                    _files
                    return
                fi
                continue
                ;;
            -*) continue ;;
        esac
        case "$at ${{words[i]}}" in
            {known}) at="$at ${{words[i]}}" ;;
        esac
    done
    case "$at" in
{cases}    esac
    if [[ "${{words[CURRENT]}}" == -* ]]; then
        _describe flag flags
    elif ((${{#next}})); then
        _describe command next
    else
        _files
    fi
}}

if [ "$funcstack[1]" = "_{tool}" ]; then
    _{tool} "$@"
else
    compdef _{tool} {tool}
fi
"#,
        valued = valued(places),
        known = known(places),
    )
}

fn fish(tool: &str, places: &[Place]) -> String {
    let mut lines = String::new();
    for place in places {
        let here = format!("-n {}", quoted(&format!("__{tool}_at{}", key(place))));
        for (word, help) in &place.next {
            lines += &format!("complete -c {tool} {here} -f -a {} -d {}\n", quoted(word), quoted(help));
        }
        for flag in &place.flags {
            let short = flag.short.map(|short| format!(" -s {short}")).unwrap_or_default();
            let value = if flag.kind == Kind::Bool { "" } else { " -r" };
            lines += &format!(
                "complete -c {tool} {here} -l {}{short}{value} -d {}\n",
                flag.name,
                quoted(flag.help)
            );
        }
    }
    let (valued, known) = (valued(places).replace('|', " "), known(places).replace('|', " "));
    format!(
        r#"# fish completion for {tool}: {tool} completion fish | source

# Whether the words of commands that stand on the line are these.
function __{tool}_at
    set -l at ""
    set -l skip no
    for word in (commandline -opc)[2..]
        if test $skip = yes
            set skip no
            continue
        end
        if contains -- $word {valued}
            set skip yes
            continue
        end
        string match -q -- '-*' $word; and continue
        if contains -- "$at $word" {known}
            set at "$at $word"
        end
    end
    test "$at" = (string join "" " "$argv | string collect --allow-empty)
end

{lines}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::flag;

    static GLOBALS: &[Flag] =
        &[Flag { short: Some('w'), ..flag("write-out", Kind::Text, "", "the format's name") }];
    static FLAGS: &[Flag] = &[flag("prefix", Kind::Bool, "false", "keys: all with a prefix")];

    fn commands() -> [Entry; 3] {
        [
            Entry { path: &["get"], help: "Gets a key", flags: FLAGS },
            Entry { path: &["lease", "grant"], help: "Grants a lease", flags: &[] },
            Entry { path: &["completion"], help: "Prints a script", flags: &[] },
        ]
    }

    fn said(program: &str, text: &str) -> Vec<String> {
        let output = std::process::Command::new(program).args(["-c", text]).output().unwrap();
        let said = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        said.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_commands_and_flags() {
        let script = script("tool", b"bash", &commands(), GLOBALS).unwrap();
        for (line, expected) in [
            (&["tool", ""][..], &["get", "lease", "completion"][..]),
            (&["tool", "le"], &["lease"]),
            (&["tool", "lease", ""], &["grant"]),
            (&["tool", "-w", "json", "lease", "g"], &["grant"]),
            (&["tool", "--write-out", "=", "json", "lease", "g"], &["grant"]),
            (&["tool", "--write-out", "get"], &[]),
            (&["tool", "get", "--"], &["--prefix", "--write-out"]),
            (&["tool", "get", "key", "--p"], &["--prefix"]),
            (&["tool", "lease", "grant", "--"], &["--write-out"]),
            (&["tool", "completion", "b"], &["bash"]),
        ] {
            let words: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
            let (words, last) = (words.join(" "), line.len() - 1);
            let text = format!(
                "{script}\nCOMP_WORDS=({words})\nCOMP_CWORD={last}\n_tool\necho \"${{COMPREPLY[@]}}\""
            );
            assert_eq!(said("bash", &text), expected, "{line:?}");
        }
    }

    #[test]
    fn other_shells_have_every_word_or_are_refused() {
        let zsh = script("tool", b"zsh", &commands(), GLOBALS).unwrap();
        assert!(zsh.starts_with("#compdef tool\n") && zsh.contains(r"'--prefix:keys: all with a prefix'"));
        assert!(zsh.contains(r#"" get"|" lease"|" lease grant"|" completion") at="#));
        let fish = script("tool", b"fish", &commands(), GLOBALS).unwrap();
        assert!(fish.contains("-n '__tool_at lease' -f -a 'grant' -d 'Grants a lease'\n"));
        assert!(fish.contains(r"-l write-out -s w -r -d 'the format'\''s name'"));
        for (shell, text) in [
            (&b"powershell"[..], "there is no script for powershell; bash, zsh and fish have one"),
            (b"tcsh", "invalid argument \"tcsh\" for \"tool completion\""),
        ] {
            assert_eq!(script("tool", shell, &commands(), GLOBALS), Err(Failure::bad_args(text)));
        }
    }
}
