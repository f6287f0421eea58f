"""What was asked, what will be done, and what was done.

catalog_record.py: What is known of each file of a catalog, and of the catalog as a whole.
rules.py: Options that hold for some modules only, by patterns of paths.
options.py: What the user asked for: every option of a migration, checked when it is made.
companions.py: What becomes of biases, norms and whole layers beside an adapter's pairs.
plan.py: What will be done with every module, decided before anything is computed on a device.
relation.py: One sentence about a pair of base models, from the similarity of its modules.
refined.py: What a refinement was: the record that stands in a migration's report.
report.py: What a migration did, module by module, as JSON-able records.
folder_report.py: Reports of a folder: what all files share stands once.
fields.py: Fields of a report's JSON that no report has.
token_flags.py: What a report says of tokens: which stay behind.
nearness.py: `--gate auto`: weights so close that their subspaces need not be computed.
reuse.py: A plan that was made before, checked against the job at hand (`migrate --plan`).

Never: jax, files.
May import: errors, architectures, adapters, matching, method.
"""
