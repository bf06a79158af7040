"""The tests. A package, since one that tests need (textstat) installs a package of the same name beside its own."""
