"""The provider's side: where its endpoints are, how many calls they take, when to wait, when to try again."""
