"""Pictures from arrays, features and records: each module draws one kind, and nothing here measures."""
