"""Completions for bash, zsh and fish: all words are in them, so TAB does not start Python.

Names of devices are not completed: asking the servers takes longer than anybody waits for TAB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tools.commands import HELP, Argument, Command, Option, Program

HEADER = "# usb-remote: commands and options; written by `make generate`"

# -- bash ---------------------------------------------------------------------------------------

BASH = """{header}
_usb_remote() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command='' words='' i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            {valued}) ((i++)) ;;
            -*) ;;
            *)
                command+=${{command:+ }}${{COMP_WORDS[i]}}
                case $command in {groups}) ;; *) break ;; esac
                ;;
        esac
    done
    COMPREPLY=()
    case $command:${{COMP_WORDS[COMP_CWORD - 1]}} in
{values}
    esac
    case $command in
{words}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -F _usb_remote usb-remote
"""


def bash(program: Program) -> str:
    return BASH.format(
        header=HEADER,
        valued="|".join(_valued(program.options)),
        groups="|".join(group.name for group in program.groups),
        values="\n".join(_bash_values(program)),
        words="\n".join(_bash_words(program)),
    )


def _bash_values(program: Program) -> Iterator[str]:
    """What follows an option with a value: files, its choices, or nothing."""
    for name, options in [("", program.options), *((c.name, c.options) for c in program.commands)]:
        for option in filter(lambda o: o.takes_word, options):
            pattern = "|".join(f"'{name}:{n}'" for n in option.names)
            kind = "-f" if option.takes_path else f"-W '{' '.join(option.choices)}'"
            reply = f'mapfile -t COMPREPLY < <(compgen {kind} -- "$word")'
            yield f"        {pattern}) {reply}; return ;;"


def _bash_words(program: Program) -> Iterator[str]:
    yield _bash_case("", [w for w, _ in program.children()], program.options)
    for group in program.groups:
        yield _bash_case(group.name, [w for w, _ in program.children(group.name)], ())
    for command in program.commands:
        yield _bash_case(command.name, _choices(command.arguments), command.options)


def _bash_case(command: str, words: Iterable[str], options: Sequence[Option]) -> str:
    names = [name for option in (*options, HELP) for name in option.names]
    return f"        '{command}') words='{' '.join([*words, *names])}' ;;"


def _valued(options: Iterable[Option]) -> list[str]:
    return [name for option in options if option.takes_word for name in option.names]


def _choices(arguments: Iterable[Argument]) -> list[str]:
    return [choice for argument in arguments for choice in argument.choices]


# -- zsh ----------------------------------------------------------------------------------------

ZSH = """#compdef usb-remote
{header}
_usb-remote() {{
    local curcontext=$curcontext state
    local -a line commands
    local -A opt_args
    _arguments -C {options} '1:command:->command' '*::argument:->argument'
    case $state in
        command)
            commands=({commands})
            _describe command commands
            ;;
        argument)
            case $words[1] in
{cases}
            esac
            ;;
    esac
}}
_usb-remote "$@"
"""
ZSH_GROUP = """                {name})
                    if (( CURRENT == 2 )); then
                        commands=({commands})
                        _describe command commands
                    else
                        shift words
                        (( CURRENT-- ))
                        case $words[1] in
{cases}
                        esac
                    fi
                    ;;"""


def zsh(program: Program) -> str:
    top = [c for c in program.commands if " " not in c.name]
    groups = [_zsh_group(program, group.name) for group in program.groups]
    return ZSH.format(
        header=HEADER,
        options=_zsh_options(program.options),
        commands=_zsh_described(program.children()),
        cases="\n".join([*(_zsh_case(c, 16) for c in top), *groups]),
    )


def _zsh_group(program: Program, name: str) -> str:
    inner = [c for c in program.commands if c.name.startswith(f"{name} ")]
    return ZSH_GROUP.format(
        name=name,
        commands=_zsh_described(program.children(name)),
        cases="\n".join(_zsh_case(c, 28) for c in inner),
    )


def _zsh_case(command: Command, indent: int) -> str:
    arguments = " ".join(map(_zsh_argument, command.arguments))
    words = f"{_zsh_options(command.options)} {arguments}".rstrip()
    return f"{' ' * indent}{command.name.rpartition(' ')[2]}) _arguments {words} ;;"


def _zsh_described(children: Iterable[tuple[str, str]]) -> str:
    return " ".join(_quoted(f"{word}:{about}") for word, about in children)


def _zsh_options(options: Sequence[Option]) -> str:
    return " ".join(_zsh_option(o, name) for o in (*options, HELP) for name in o.names)


def _zsh_option(option: Option, name: str) -> str:
    others = f"({' '.join(option.names)})" if len(option.names) > 1 else ""
    about = option.help.translate(str.maketrans("[]", "()")).replace(":", "\\:")
    action = "_files" if option.takes_path else f"({' '.join(option.choices)})"
    given = option.takes_path or option.choices
    value = f":{option.value.strip()}:{action if given else ' '}" if option.takes_word else ""
    return _quoted(f"{others}{name}[{about}]{value}")


def _zsh_argument(argument: Argument) -> str:
    return _quoted(f":{argument.word.replace(':', ' ')}:({' '.join(argument.choices)})")


# -- fish ---------------------------------------------------------------------------------------


def fish(program: Program) -> str:
    return "\n".join([HEADER, "complete -c usb-remote -f", *_fish_lines(program), ""])


def _fish_lines(program: Program) -> Iterator[str]:
    yield from _fish_words("__fish_use_subcommand", program.children())
    yield from _fish_options("__fish_use_subcommand", program.options)
    for group in program.groups:
        words = program.children(group.name)
        names = " ".join(word for word, _ in words)
        yield from _fish_words(f"{_seen(group.name)}; and not {_seen(names)}", words)
    for command in program.commands:
        condition = "; and ".join(map(_seen, command.name.split()))
        yield from _fish_words(condition, [(c, "") for c in _choices(command.arguments)])
        yield from _fish_options(condition, command.options)


def _seen(words: str) -> str:
    return f"__fish_seen_subcommand_from {words}"


def _fish_words(condition: str, words: Iterable[tuple[str, str]]) -> Iterator[str]:
    for word, about in words:
        described = f" -d {_quoted(about)}" if about else ""
        yield f"complete -c usb-remote -n {_quoted(condition)} -a {_quoted(word)}{described}"


def _fish_options(condition: str, options: Sequence[Option]) -> Iterator[str]:
    for option in (*options, HELP):
        names = " ".join(f"-{'l' if n[:2] == '--' else 's'} {n.lstrip('-')}" for n in option.names)
        about = _quoted(option.help)
        value = _fish_value(option)
        yield f"complete -c usb-remote -n {_quoted(condition)} {names}{value} -d {about}"


def _fish_value(option: Option) -> str:
    if not option.takes_word:
        return ""
    if option.takes_path:
        return " -r -F"
    return f" -x -a {_quoted(' '.join(option.choices))}" if option.choices else " -x"


def _quoted(text: str) -> str:
    """In single quotes, for all three shells: without any inside."""
    return "'" + text.replace("'", "’") + "'"
