"""Prints how much code a reader meets on the way of a document from text to loss.

    python tests/nine_hops.py

It starts at the functions of the README's nine hops and follows names from function to function:
calls, classes and their methods, imports of the project. It counts the lines of all functions and
methods that it reaches, without docstrings, comments and blank lines. A method counts if its class
is reached and a function on the way uses its name; a class method, if that names the class too.

It ends at paths: names in `pipeline.storage` have the methods of `pathlib.Path`, and a document on
a disk meets no more of them.
"""

import ast
import io
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "modeling")
PATHS = "pipeline.storage"
HOPS = (
    ("pipeline.formats.text", "read_text"),
    ("pipeline.documents", "read_documents"),
    ("pipeline.corpus", "tokenize_documents"),
    ("pipeline.corpus", "write_documents"),
    ("pipeline.corpus", "read_documents_of_bucket"),
    ("pipeline.segment_pairs", "plan_segment_pairs"),
    ("pipeline.instances", "generate_instances"),
    ("pipeline.records", "encode_examples"),
    ("modeling.batches", "training_batches"),
    ("modeling.bert_for_pretraining", "BertForPreTraining"),
    ("modeling.losses", "pretraining_sums"),
    ("modeling.losses", "total_loss"),
)
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


class Module:
    """A module's top-level names: functions, classes and constants, and what it imports."""

    def __init__(self, name):
        path = ROOT.joinpath(*name.split("."))
        self.source = path.with_suffix(".py").read_text("utf-8")
        self.nodes, self.imports = {}, {}
        for node in ast.parse(self.source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.nodes[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for each in ast.walk(node):
                    if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                        self.nodes[each.id] = node
            elif isinstance(node, ast.ImportFrom) and _is_followed(node.module):
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = (node.module, alias.name)


def _is_followed(name):
    return name.split(".")[0] in PACKAGES and name != PATHS


module = cache(Module)


class Reader:
    """Follows names through the code, and counts the lines of the functions on the way."""

    def __init__(self):
        self.lines = defaultdict(dict)
        self._seen = set()
        self._methods = {}
        self._attributes, self._attributes_of_classes = set(), set()

    def read(self, hops):
        """Reads from the hops on until there is nothing new."""
        for hop in hops:
            self._reach(*hop)
        while found := [key for key in self._methods if self._is_used(*key)]:
            for key in found:
                self._count(key[0], f"{key[1]}.{key[2]}", self._methods.pop(key))

    def _reach(self, module_name, name):
        node = module(module_name).nodes.get(name)
        if node is None:
            if name in module(module_name).imports:
                self._reach(*module(module_name).imports[name])
        elif (module_name, name) not in self._seen:
            self._seen.add((module_name, name))
            if isinstance(node, ast.FunctionDef):
                self._count(module_name, name, node)
            elif isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef):
                        self._methods[module_name, name, member.name] = member
                    else:
                        self._follow(module_name, member)
                for base in node.bases:
                    self._follow(module_name, base)
            else:
                self._follow(module_name, node)

    def _is_used(self, *key):
        _, class_name, method = key
        if "classmethod" in map(ast.unparse, self._methods[key].decorator_list):
            return (class_name, method) in self._attributes_of_classes
        is_special = method.startswith("__") or method in ("build", "call")
        return is_special or method in self._attributes

    def _count(self, module_name, name, node):
        self.lines[module_name][name] = code_lines(module(module_name).source, node)
        self._follow(module_name, node)

    def _follow(self, module_name, node):
        for each in ast.walk(node):
            if isinstance(each, ast.Name):
                self._reach(module_name, each.id)
            elif isinstance(each, ast.Attribute):
                self._attributes.add(each.attr)
                if isinstance(each.value, ast.Name):
                    self._attributes_of_classes.add((each.value.id, each.attr))


def code_lines(source, function):
    """The number of lines of a function that hold code."""
    docstrings = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings |= set(range(node.lineno, node.end_lineno + 1))
    first = min([function.lineno, *(node.lineno for node in function.decorator_list)])
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE and first <= token.start[0] <= function.end_lineno:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def lines_of_hops():
    """The lines of each function on the way, by module."""
    reader = Reader()
    reader.read(HOPS)
    return {name: reader.lines[name] for name in sorted(reader.lines)}


def main():
    lines = lines_of_hops()
    for name, functions in lines.items():
        print(f"{sum(functions.values()):6}  {name}: {len(functions)} functions")
    print(f"{sum(sum(functions.values()) for functions in lines.values()):6}  lines in all")


if __name__ == "__main__":
    main()
