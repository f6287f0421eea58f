"""Places where files lie: local folders and object stores, behind five verbs.

place.py: The five verbs, and what they answer.
local.py: A local folder as a place: links make a file appear once and whole.
store_place.py: What all object stores have in common: keys, pace, what follows an unclear answer.
object_store.py: An S3 store as a place, by obstore.
google_store.py: Google Cloud Storage as a place, by its JSON API and google-auth.
pacing.py: How fast a store is asked, and how long one waits for it.
opening.py: URLs: which place one means, what is shown of it, and whether the place can be trusted.
scratch.py: Folders that are thrown away, also those of processes that were killed.
staging.py: Files of a place in a local folder, whole and unchanged, or not there.
"""
