"""What several studies share. Nothing here knows a study."""
