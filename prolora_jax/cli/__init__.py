"""The `prolora` command: a command parses, makes one call and prints.

benchmark_tables.py: Results of benchmarks as tables for people; every sample is in the JSON.
console.py: Where output goes: results on stdout, progress and errors on stderr.
benchmark.py: `prolora benchmark bases | migrate | catalog`.
catalog_tables.py: What commands show of a catalog.
convert.py: `prolora convert`.
demo_tables.py: What `prolora demo` shows.
fleet.py: `prolora fleet run | status | compact | verify | retry`.
evaluate.py: `prolora evaluate`.
generate.py: `prolora generate`.
main.py: The command line as a whole: which commands there are, exit codes, `--config`.
migrate_options.py: The options of `prolora migrate` in groups, most used first.
migrate_refine.py: `prolora migrate --refine`: the job of `prolora refine`, in words of `migrate`.
migrate_many.py: `prolora migrate` with several inputs or a folder.
status.py: `prolora status`.
store_tables.py: What a store holds, as tables for people and as rows for JSON.
subspaces.py: `prolora subspaces build | list | prune`.
unused.py: What was asked for and would do nothing is refused.
tables.py: Plans, reports and similarities as tables for people.
demo.py: `prolora demo`.
diff.py: `prolora diff`.
inspect.py: `prolora inspect`.
migrate.py: `prolora migrate`.
refine.py: `prolora refine`.
similarity.py: `prolora similarity`.
verify.py: `prolora verify`.

Never: files.
May import: anything.
"""
